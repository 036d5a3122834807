/* Sizes of the work space on the stack. */
#define TILE 1024       /* elements: the tiles of a rule's arrays fit the first-level cache */
#define MAX_STATES 3    /* arrays of state that a rule may have */
#define MAX_COPIES 16   /* of them (AggMo's betas) */
#define MAX_ROW 16      /* coefficients, the prologue's three among them */
