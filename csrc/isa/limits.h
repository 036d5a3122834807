/* Sizes of work space on the stack. */
#ifndef FASTOPT_LIMITS_H
#define FASTOPT_LIMITS_H

#include "rule_table.h" /* MAX_ARRAYS of one tensor; MAX_ROW, its coefficients, the prologue's included */

#define TILE 512                    /* elements; the tiles of a rule's arrays fit the first-level cache */
#define MAX_STORED (MAX_ARRAYS + 2) /* arrays of one tensor, with those that storage adds */
#define MAX_STREAM 6                /* arrays of a stream */
#define PREPARED_TILE FASTOPT_BLOCK /* elements whose gradient is prepared while the next are prefetched */
#define PREPARED_AHEAD 384          /* elements ahead to prefetch while noise is drawn: the kernel's loop has the rest */
#define SUM_DEPTH 11                /* sums of a gradient's arrays that are kept at once: of trees of 1024 leaves */
#define STORED_TILE FASTOPT_BLOCK   /* elements of arrays in storage formats that are updated at a time */
#define CHUNK 32                    /* elements converted at a time */
#define NORMALS 64                  /* elements whose deviates are computed together: of four vectors on any level */

#endif
