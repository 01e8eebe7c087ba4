#define VW 16
#include "kernels.h"
