/* Sizes of work space on the stack. */
#ifndef FASTOPT_LIMITS_H
#define FASTOPT_LIMITS_H

#define TILE 512                            /* elements; the tiles of a rule's arrays fit the first-level cache */
#define MAX_ARRAYS (2 + FASTOPT_MAX_COPIES) /* of one tensor; a rule has at most three states, or copies of one */
#define MAX_STORED (MAX_ARRAYS + 2)         /* the same with those that storage adds */
#define MAX_ROW (FASTOPT_MAX_COPIES * 8)    /* coefficients of one tensor, the prologue's included */
#define CHUNK 32                            /* elements converted at a time */

#endif
