#define VW 8
#include "kernels.h"
