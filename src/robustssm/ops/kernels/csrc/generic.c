#define VW 4
#include "kernels.h"
