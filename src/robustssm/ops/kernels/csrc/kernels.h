/* Everything that a compiled library holds; included once by the source file of every target. */
#include "vector.h"

/* Raised when a function's arguments change, so that an old library is refused. */
#define ROBUSTSSM_NATIVE_VERSION 1

EXPORT int64_t robustssm_native_version(void) { return ROBUSTSSM_NATIVE_VERSION; }

EXPORT int64_t robustssm_vector_width(void) { return VW; }

#include "matrix.h"
#include "convolution_direct.h"
#include "convolution_fft.h"
#include "selective_scan.h"
#include "short_convolution.h"
#include "scan.h"
#include "low_rank.h"
#include "attention.h"
#include "activation.h"
#include "layer_norm.h"
#include "block.h"
#include "mega_gates.h"
