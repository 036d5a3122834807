/* The rules: the fold of each, from hyper-parameters to coefficients, and its update of one element.
 *
 * This file is included once for each compute type, with `real` defined. The folds are in float64; FASTOPT_FOLDS asks
 * for them. The structures come from the rule table in Python (rule_table.h, written by the build): s-> has the
 * states and the inputs, h-> the hyper-parameters, c-> the coefficients, under the same names. g has been through the
 * prologue.
 *
 * A rule with states by row has a ROW in place of an update: it takes the mean square of the row's gradient, updates
 * the row's states and returns the coefficients of another rule's update, which then runs over the row's elements.
 *
 * A rule with a stage over tensors has a MEASURE, which writes the factors of the products that are summed over the
 * tensor, and a STAGE, which makes further coefficients of the sums. A MEASURE changes copies of the states only. The
 * states that are one number of the tensor are the STAGE's: one-> has them. Those that the MEASURE reads are coefficients
 * too, as they were before the step.
 *
 * Choices are written as c ? a : b between values already computed, so that compilers vectorise them.
 */
#define UPDATE(rule) static inline void FN(rule)(real *p, real g, FN(rule##_states) *s, const FN(rule##_coefs) *c)
#define ROW(rule, update)                                                                                             \
    static inline FN(update##_coefs) FN(rule)(real square, FN(rule##_states) *s, const FN(rule##_coefs) *c)
#define MEASURE(rule)                                                                                                 \
    static inline void FN(measure_##rule)(UNUSED real p, UNUSED real g, UNUSED FN(rule##_states) *s,                  \
                                          UNUSED const FN(rule##_coefs) *c, real (*factors)[2])
#define UNUSED __attribute__((unused)) /* many folds ignore the step, most the scalars */
#define FOLD(rule)                                                                                                    \
    static void fold_##rule(UNUSED double t, const rule##_hyper *h, UNUSED double *scalars, rule##_coefs_f64 *c)
#define STAGE(rule)                                                                                                   \
    static void stage_##rule(const rule##_sums *sum, UNUSED rule##_singles *one, rule##_coefs_f64 *c)

/* The larger number; NaN if either is NaN. */
static inline real FN(maximum)(real a, real b) { return a >= b || a != a ? a : b; }

static inline real FN(prologue)(real *p, real g, const FN(prologue_coefs) *c)
{
    g = c->grad_scale * g;
    const real decayed = g + c->weight_decay * *p;
    *p = *p * c->decay;
    return c->weight_decay == 0 ? g : decayed; /* 0*p would be NaN for an infinite p */
}

/* ---- sgd ---- */
UPDATE(sgd)
{
    (void)s;
    *p -= c->lr * g;
}

/* ---- momentum ---- */
UPDATE(momentum)
{
    s->momentum_buffer = c->mu * s->momentum_buffer + c->gain * g;
    *p -= c->rate * s->momentum_buffer;
}

/* ---- nesterov ---- */
UPDATE(nesterov)
{
    s->momentum_buffer = c->mu * s->momentum_buffer + c->gain * g;
    *p -= c->rate_g * g + c->rate_b * s->momentum_buffer;
}

/* ---- qhm ---- */
UPDATE(qhm)
{
    s->momentum_buffer = c->beta * s->momentum_buffer + c->beta_c * g;
    *p -= c->rate_b * s->momentum_buffer + c->rate_g * g;
}

/* ---- aggmo, called once for each beta ---- */
UPDATE(aggmo)
{
    s->momentum_buffer = c->beta * s->momentum_buffer + g;
    *p -= c->rate * s->momentum_buffer;
}

/* ---- lion ---- */
UPDATE(lion)
{
    const real b = c->beta1 * s->exp_avg + c->beta1_c * g;
    *p -= b > 0 ? c->lr : b < 0 ? -c->lr : b;
    s->exp_avg = c->beta2 * s->exp_avg + c->beta2_c * g;
}

/* ---- signsgd ---- */
UPDATE(signsgd)
{
    const real b = c->beta * s->momentum_buffer + c->beta_c * g;
    *p -= b > 0 ? c->lr : b < 0 ? -c->lr : b;
    s->momentum_buffer = b;
}

/* ---- schedule-free ---- */
UPDATE(schedule_free_sgd)
{
    const real offset = s->z_offset;
    *p -= c->rate * g - c->weight * offset;
    s->z_offset = c->rest * (offset - c->gain * g);
}

UPDATE(schedule_free_adamw)
{
    const real offset = s->z_offset;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    const real direction = c->root * g / (SQRT(s->exp_avg_sq) + c->eps), decayed = direction + c->decay * *p;
    const real u = c->decay == 0 ? direction : decayed; /* as in the prologue */
    *p -= c->rate * u - c->weight * offset;
    s->z_offset = c->rest * (offset - c->gain * u);
}

/* ---- asgd ---- */
UPDATE(asgd)
{
    *p = c->shrink * *p - c->rate * g;
    const real average = c->mu_c * s->ax + c->mu * *p;
    s->ax = c->mu_c == 0 ? *p : average; /* while mu is 1 the average is the parameter, whatever it was */
}

/* ---- rprop ---- */
UPDATE(rprop)
{
    const real agreement = g * s->prev, longer = c->etaplus * s->step_size, shorter = c->etaminus * s->step_size;
    real size = agreement > 0 ? longer : agreement < 0 ? shorter : s->step_size;
    size = size < c->smallest ? c->smallest : size > c->largest ? c->largest : size;
    size = g == g ? size : g; /* NaN if g is */
    g = agreement < 0 ? 0 : g;
    *p -= g > 0 ? size : g < 0 ? -size : g;
    s->prev = g;
    s->step_size = size;
}

/* ---- adagrad ---- */
UPDATE(adagrad)
{
    s->sum = s->sum + g * g;
    *p -= c->lr * g / (SQRT(s->sum + c->eps_root) + c->eps);
}

ROW(rowwise_adagrad, sgd)
{
    s->sum = s->sum + square;
    return (FN(sgd_coefs)){c->lr / (SQRT(s->sum + c->eps_root) + c->eps)};
}

/* ---- adadelta ---- */
UPDATE(adadelta)
{
    s->square_avg = c->rho * s->square_avg + c->rho_c * g * g;
    real delta = SQRT(s->acc_delta + c->eps) / SQRT(s->square_avg + c->eps) * g;
    s->acc_delta = c->rho * s->acc_delta + c->rho_c * delta * delta;
    *p -= c->lr * delta;
}

/* ---- rmsprop ---- */
UPDATE(rmsprop)
{
    s->square_avg = c->alpha * s->square_avg + c->alpha_c * g * g;
    *p -= c->lr * g / (SQRT(s->square_avg + c->eps_root) + c->eps);
}

UPDATE(rmsprop_momentum)
{
    s->square_avg = c->alpha * s->square_avg + c->alpha_c * g * g;
    s->momentum_buffer = c->momentum * s->momentum_buffer + c->gain * g / (SQRT(s->square_avg + c->eps_root) + c->eps);
    *p -= c->rate * s->momentum_buffer;
}

UPDATE(rmsprop_centered)
{
    s->square_avg = c->alpha * s->square_avg + c->alpha_c * g * g;
    s->grad_avg = c->alpha * s->grad_avg + c->alpha_c * g;
    real w = s->square_avg - s->grad_avg * s->grad_avg;
    w = w > 0 ? w : w - w; /* 0, or NaN if w is NaN */
    *p -= c->lr * g / (SQRT(w + c->eps_root) + c->eps);
}

UPDATE(rmsprop_centered_momentum)
{
    s->square_avg = c->alpha * s->square_avg + c->alpha_c * g * g;
    s->grad_avg = c->alpha * s->grad_avg + c->alpha_c * g;
    real w = s->square_avg - s->grad_avg * s->grad_avg;
    w = w > 0 ? w : w - w; /* 0, or NaN if w is NaN */
    s->momentum_buffer = c->momentum * s->momentum_buffer + c->gain * g / (SQRT(w + c->eps_root) + c->eps);
    *p -= c->rate * s->momentum_buffer;
}

/* ---- ftrl ---- */
UPDATE(ftrl)
{
    const int still = c->inverse_lr == 0;
    const real square = g * g;
    const real sum = still ? s->accumulator : s->accumulator + square, root = SQRT(sum);
    /* g * (g / roots) is root - sqrt(accumulator) without cancellation. */
    const real roots = SQRT(s->accumulator) + root, drawn = g * (g / roots) * c->inverse_lr * *p;
    const real moved = s->linear + (g - (square == 0 ? square : drawn));
    const real low = moved < -c->l1 ? -c->l1 : moved;
    const real shrunk = (low > c->l1 ? c->l1 : low) - moved;
    const real quotient = shrunk / (root * c->inverse_lr + c->curvature), after = shrunk == 0 ? shrunk : quotient;
    *p = still ? *p : after;
    s->accumulator = sum;
    s->linear = still ? s->linear : moved; /* last: if it came earlier, gcc would compute all that follows twice */
}

/* ---- adam ---- */
UPDATE(adam)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    *p -= c->rate * s->exp_avg / (SQRT(s->exp_avg_sq + c->eps_root) + c->eps);
}

UPDATE(amsgrad)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    s->max_exp_avg_sq = FN(maximum)(s->max_exp_avg_sq, s->exp_avg_sq * c->correction2);
    *p -= c->rate * s->exp_avg / (SQRT(s->max_exp_avg_sq + c->eps_root) + c->eps);
}

/* ---- adamax ---- */
UPDATE(adamax)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_inf = FN(maximum)(c->beta2 * s->exp_inf, ABS(g) + c->eps_inside);
    real norm = s->exp_inf + c->eps_outside;
    /* If the norm is 0, so was every gradient: the update is 0, not 0/0. */
    *p -= norm == 0 ? norm : c->rate * s->exp_avg / norm;
}

/* ---- nadam ---- */
UPDATE(nadam)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    *p -= (c->rate_m * s->exp_avg + c->rate_g * g) / (SQRT(s->exp_avg_sq) + c->eps);
}

/* ---- qhadam ---- */
UPDATE(qhadam)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    *p -= (c->rate_m * s->exp_avg + c->rate_g * g) / (SQRT(c->weight_v * s->exp_avg_sq + c->weight_g * g * g) + c->eps);
}

/* ---- adabound ---- */
UPDATE(adabound)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    real r = c->rate / (SQRT(s->exp_avg_sq) + c->eps);
    r = r < c->lower ? c->lower : r > c->upper ? c->upper : r;
    *p -= r * s->exp_avg;
}

UPDATE(amsbound)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    s->max_exp_avg_sq = FN(maximum)(s->max_exp_avg_sq, s->exp_avg_sq);
    real r = c->rate / (SQRT(s->max_exp_avg_sq) + c->eps);
    r = r < c->lower ? c->lower : r > c->upper ? c->upper : r;
    *p -= r * s->exp_avg;
}

/* ---- adabelief ---- */
UPDATE(adabelief)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    const real surprise = g - s->exp_avg;
    s->exp_avg_var = c->beta2 * s->exp_avg_var + c->beta2_c * surprise * surprise + c->eps_root;
    *p -= c->rate * s->exp_avg / (SQRT(s->exp_avg_var) + c->eps);
}

/* ---- radam ---- */
UPDATE(radam)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    const real norm = SQRT(s->exp_avg_sq) + c->eps;
    *p -= c->rate * s->exp_avg / (c->adaptive == 0 ? c->eps : norm);
}

/* ---- adan ---- */
UPDATE(adan)
{
    const real change = g + s->neg_pre_grad, difference = c->past == 0 ? c->past : change;
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_diff = c->beta2 * s->exp_avg_diff + c->beta2_c * difference;
    const real ahead = g + c->weight * difference;
    s->exp_avg_sq = c->beta3 * s->exp_avg_sq + c->beta3_c * ahead * ahead;
    *p -= (c->rate * s->exp_avg + c->rate_diff * s->exp_avg_diff) / (SQRT(s->exp_avg_sq + c->eps_root) + c->eps);
    *p *= c->shrink;
    s->neg_pre_grad = -g;
}

/* ---- ademamix ---- */
UPDATE(ademamix)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_slow = c->beta3 * s->exp_avg_slow + c->beta3_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    *p -= (c->rate * s->exp_avg + c->rate_slow * s->exp_avg_slow) / (SQRT(s->exp_avg_sq + c->eps_root) + c->eps);
}

/* ---- lars ---- */
UPDATE(lars)
{
    const real decayed = g + c->weight_decay * *p;
    s->momentum_buffer = c->mu * s->momentum_buffer + c->ratio * (c->weight_decay == 0 ? g : decayed);
    *p -= c->rate * s->momentum_buffer;
}

MEASURE(lars)
{
    const real decayed = g + c->within * p;
    factors[0][0] = factors[0][1] = p;
    factors[1][0] = factors[1][1] = c->within == 0 ? g : decayed;
}

/* ---- lamb ---- */
static inline real FN(lamb_direction)(real p, real g, FN(lamb_states) *s, const FN(lamb_coefs) *c)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    const real direction = c->scale * s->exp_avg / (SQRT(s->exp_avg_sq + c->eps_root) + c->eps);
    const real decayed = direction + c->weight_decay * p;
    return c->weight_decay == 0 ? direction : decayed;
}

UPDATE(lamb)
{
    *p -= c->rate * FN(lamb_direction)(*p, g, s, c);
}

MEASURE(lamb)
{
    factors[0][0] = factors[0][1] = p;
    factors[1][0] = factors[1][1] = FN(lamb_direction)(p, g, s, c);
}

/* ---- novograd ---- */
UPDATE(novograd)
{
    const real direction = c->scale * g, decayed = direction + c->weight_decay * *p;
    s->exp_avg = c->beta1 * s->exp_avg + c->gain * (c->weight_decay == 0 ? direction : decayed);
    *p -= c->lr * s->exp_avg;
}

MEASURE(novograd)
{
    factors[0][0] = factors[0][1] = g;
}

/* ---- swats ---- */
UPDATE(swats)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->gain * g;
    const real squares = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    s->exp_avg_sq = c->sgd == 0 ? squares : s->exp_avg_sq;
    const real adams = c->scale * s->exp_avg / (SQRT(s->exp_avg_sq) + c->eps), sgds = c->step_rate * s->exp_avg;
    *p -= c->sgd == 0 ? adams : sgds;
    s->exp_avg = c->kept == 0 ? 0 : s->exp_avg;
}

MEASURE(swats)
{
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * g * g;
    factors[0][0] = factors[0][1] = factors[1][0] = c->scale * s->exp_avg / (SQRT(s->exp_avg_sq) + c->eps);
    factors[1][1] = g;
}

/* ---- adaptive_revision ---- */
UPDATE(adaptive_revision)
{
    const real behind = s->grad_sum - s->snapshot, before = c->lr / SQRT(s->z_max), cross = g * behind;
    s->z = s->z + (g * g + (cross + cross));
    s->z_max = FN(maximum)(s->z_max, s->z);
    const real root = SQRT(s->z_max);
    *p = *p - c->lr * g / root;
    const real revised = *p + (before - c->lr / root) * behind;
    *p = behind == 0 ? *p : revised; /* else -0 would be 0, and the bits not Adagrad's */
    s->grad_sum = s->grad_sum + g;
    s->snapshot = c->read == 0 ? s->snapshot : s->grad_sum;
}

/* ---- dc_asgd ---- */
UPDATE(dc_asgd)
{
    const real compensated = g + c->lambd * g * g * (*p - s->backup);
    g = *p == s->backup ? g : compensated; /* else -0 and infinity would be others, and the bits not SGD's */
    *p = *p - c->lr * g;
    s->backup = c->read == 0 ? s->backup : *p;
}

UPDATE(dc_asgd_adaptive)
{
    s->square_avg = c->alpha * s->square_avg + c->alpha_c * g * g;
    const real compensated = g + c->lambd0 / SQRT(s->square_avg + c->eps_root) * g * g * (*p - s->backup);
    g = *p == s->backup ? g : compensated;
    *p = *p - c->lr * g;
    s->backup = c->read == 0 ? s->backup : *p;
}

/* ---- prodigy ---- */
UPDATE(prodigy)
{
    const real decayed = g + c->within * *p;
    g = c->within == 0 ? g : decayed;
    s->exp_avg = c->beta1 * s->exp_avg + c->beta1_c * c->d * g;
    s->exp_avg_sq = c->beta2 * s->exp_avg_sq + c->beta2_c * c->d * c->d * g * g;
    s->s = c->beta3 * s->s + c->gain * c->d * c->d * g;
    const real pulled = *p - c->rate * c->beside * *p;
    *p = c->beside == 0 ? *p : pulled;
    *p -= c->rate * s->exp_avg / (SQRT(s->exp_avg_sq) + c->below);
}

MEASURE(prodigy)
{
    const real decayed = g + c->within * p;
    g = c->within == 0 ? g : decayed;
    const real now = c->beta3 * s->s + c->gain * c->d * c->d * g;
    factors[0][0] = c->progress * c->d * c->d * g;
    factors[0][1] = s->p0 - p;
    factors[1][0] = now < 0 ? -now : now;
    factors[1][1] = c->counted;
}

#ifdef FASTOPT_FOLDS

/* Sets a coefficient to the hyper-parameter of its name, and the one with the suffix _c to 1 less it. */
#define WITH_REST(name) (c->name = h->name, c->name##_c = 1.0 - h->name)

FOLD(sgd)
{
    c->lr = h->lr;
}

FOLD(momentum)
{
    double gain = t == 1.0 ? 1.0 : 1.0 - h->dampening;
    c->mu = h->momentum;
    c->gain = h->lr_inside ? gain * h->lr : gain;
    c->rate = h->lr_inside ? 1.0 : h->lr;
}

FOLD(nesterov)
{
    double gain = t == 1.0 ? 1.0 : 1.0 - h->dampening;
    c->mu = h->momentum;
    c->gain = h->lr_inside ? gain * h->lr : gain;
    c->rate_g = h->lr;
    c->rate_b = h->lr_inside ? h->momentum : h->lr * h->momentum;
}

FOLD(qhm)
{
    c->beta = h->momentum;
    c->beta_c = 1.0 - h->momentum;
    c->rate_g = h->lr * (1.0 - h->nu);
    c->rate_b = h->lr * h->nu;
}

FOLD(aggmo)
{
    c->beta = h->betas;
    c->rate = h->lr / h->copies;
}

FOLD(lion)
{
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->lr = h->lr;
}

FOLD(signsgd)
{
    c->beta = h->momentum;
    c->beta_c = 1.0 - h->momentum;
    c->lr = h->lr;
}

/* The fold that both have, with beta for where the gradient is taken. The sum of weights is in units of the largest
 * that a learning rate gave so far: their powers cannot overflow. */
#define FOLD_SCHEDULE_FREE(beta)                                                                                      \
    const double rate = t < h->warmup_steps ? h->lr * (t / h->warmup_steps) : h->lr;                                  \
    const double before = scalars[1], lr_max = rate > before ? rate : before;                                         \
    if (lr_max > 0.0)                                                                                                 \
        scalars[0] *= pow(before / lr_max, h->weight_lr_power);                                                       \
    const int counts = lr_max > 0.0 || h->weight_lr_power == 0.0;                                                     \
    const double share = counts ? pow(t, h->weight_step_power) : 0.0;                                                 \
    scalars[0] += share;                                                                                              \
    scalars[1] = lr_max;                                                                                              \
    c->weight = scalars[0] > 0.0 ? share / scalars[0] : 0.0;                                                          \
    c->rest = 1.0 - c->weight;                                                                                        \
    c->gain = rate * (beta);                                                                                          \
    c->rate = rate * (1.0 - (beta)*c->rest);

FOLD(schedule_free_sgd)
{
    FOLD_SCHEDULE_FREE(h->momentum)
}

FOLD(schedule_free_adamw)
{
    FOLD_SCHEDULE_FREE(h->beta1)
    c->root = sqrt(1.0 - pow(h->beta2, t)); /* as in FOLD_ADAM */
    WITH_REST(beta2);
    c->eps = h->eps * c->root;
    c->decay = h->weight_decay;
}

FOLD(asgd)
{
    const double eta = t == 1.0 ? h->lr : scalars[0], mu = scalars[1], base = 1.0 + h->lambd * h->lr * t;
    c->shrink = 1.0 - h->lambd * eta;
    c->rate = eta;
    c->mu = mu;
    c->mu_c = 1.0 - mu;
    scalars[0] = base > 0.0 ? h->lr / pow(base, h->alpha) : 0.0;
    scalars[1] = t - h->t0 > 1.0 ? 1.0 / (t - h->t0) : 1.0;
}

FOLD(rprop)
{
    c->etaminus = h->etaminus;
    c->etaplus = h->etaplus;
    c->smallest = h->step_size_min;
    c->largest = h->step_size_max;
}

FOLD(adagrad)
{
    c->lr = h->lr / (1.0 + (t - 1.0) * h->lr_decay);
    c->eps = h->eps;
    c->eps_root = h->eps_root;
}

FOLD(adadelta)
{
    WITH_REST(rho);
    c->eps = h->eps;
    c->lr = h->lr;
}

FOLD(rmsprop)
{
    WITH_REST(alpha);
    c->eps = h->eps;
    c->eps_root = h->eps_root;
    c->lr = h->lr;
}

FOLD(rmsprop_momentum)
{
    WITH_REST(alpha);
    c->eps = h->eps;
    c->eps_root = h->eps_root;
    c->momentum = h->momentum;
    c->gain = h->lr_inside ? h->lr : 1.0;
    c->rate = h->lr_inside ? 1.0 : h->lr;
}

FOLD(ftrl)
{
    c->inverse_lr = h->lr != 0 ? 1.0 / h->lr : 0.0;
    c->l1 = h->l1;
    c->curvature = h->lr != 0 ? h->beta / h->lr + h->l2 : 0.0;
}

/* The fold that adam and amsgrad share: the structures differ, the names of these members do not. The correction of
 * v is moved into rate and eps, because v^ can overflow where v does not. */
#define FOLD_ADAM                                                                                                     \
    const double correction1 = h->bias_correction ? 1.0 - pow(h->beta1, t) : 1.0;                                     \
    const double correction2 = h->bias_correction ? 1.0 - pow(h->beta2, t) : 1.0;                                     \
    const double root = sqrt(correction2);                                                                            \
    WITH_REST(beta1);                                                                                                 \
    WITH_REST(beta2);                                                                                                 \
    c->rate = h->lr * root / correction1;                                                                             \
    c->eps = h->eps_hat ? h->eps : h->eps * root;                                                                     \
    c->eps_root = h->eps_root * correction2;

FOLD(adam)
{
    FOLD_ADAM
}

FOLD(amsgrad)
{
    FOLD_ADAM
    c->correction2 = 1.0;
    if (h->max_corrected) {
        c->rate /= root;
        c->eps /= root;
        c->eps_root /= correction2;
        c->correction2 = 1.0 / correction2;
    }
}

FOLD(adamax)
{
    WITH_REST(beta1);
    c->beta2 = h->beta2;
    c->eps_inside = h->eps_outside ? 0.0 : h->eps;
    c->eps_outside = h->eps_outside ? h->eps : 0.0;
    c->rate = h->lr / (1.0 - pow(h->beta1, t));
}

FOLD(nadam)
{
    if (isnan(h->momentum_decay)) { /* a constant momentum */
        double correction1 = 1.0 - pow(h->beta1, t);
        c->rate_m = h->lr * h->beta1 / correction1;
        c->rate_g = h->lr * (1.0 - h->beta1) / correction1;
    } else {
        double mu = h->beta1 * (1.0 - 0.5 * pow(0.96, t * h->momentum_decay));
        double mu_next = h->beta1 * (1.0 - 0.5 * pow(0.96, (t + 1.0) * h->momentum_decay));
        double mu_product = scalars[0] *= mu;
        c->rate_m = h->lr * mu_next / (1.0 - mu_product * mu_next);
        c->rate_g = h->lr * (1.0 - mu) / (1.0 - mu_product);
    }
    const double root = sqrt(1.0 - pow(h->beta2, t)); /* as in FOLD_ADAM */
    c->rate_m *= root;
    c->rate_g *= root;
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->eps = h->eps * root;
}

FOLD(qhadam)
{
    const double correction2 = 1.0 - pow(h->beta2, t), root = sqrt(correction2); /* as in FOLD_ADAM */
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->rate_m = h->lr * h->nu1 * root / (1.0 - pow(h->beta1, t));
    c->rate_g = h->lr * (1.0 - h->nu1) * root;
    c->weight_v = h->nu2;
    c->weight_g = (1.0 - h->nu2) * correction2;
    c->eps = h->eps * root;
}

FOLD(adabound)
{
    double final = isnan(h->base_lr) ? h->final_lr : h->final_lr * h->lr / h->base_lr;
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->rate = h->lr * sqrt(1.0 - pow(h->beta2, t)) / (1.0 - pow(h->beta1, t));
    c->eps = h->eps;
    c->lower = final * (1.0 - 1.0 / (h->gamma * t + 1.0));
    c->upper = final + final / (h->gamma * t);
}

FOLD(adabelief)
{
    const double root = sqrt(1.0 - pow(h->beta2, t)); /* as in FOLD_ADAM */
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->rate = h->lr * root / (1.0 - pow(h->beta1, t));
    c->eps = h->eps * root;
    c->eps_root = h->eps_root;
}

FOLD(radam)
{
    const double correction1 = 1.0 - pow(h->beta1, t), power = pow(h->beta2, t), correction2 = 1.0 - power;
    const double longest = 2.0 / (1.0 - h->beta2) - 1.0, length = longest - 2.0 * t * power / correction2;
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->rate = h->lr / correction1;
    c->eps = 1.0; /* the denominator, if there is no other */
    c->adaptive = 0.0;
    if (length > 5.0) {
        const double tractable = (length - 4.0) * (length - 2.0) * longest, root = sqrt(correction2);
        c->rate = c->rate * root * sqrt(tractable / ((longest - 4.0) * (longest - 2.0) * length));
        c->eps = h->eps_hat ? h->eps : h->eps * root;
        c->adaptive = 1.0;
    }
}

FOLD(adan)
{
    const double weight = isnan(h->difference_weight) ? h->beta2 : h->difference_weight;
    const double correction3 = 1.0 - pow(h->beta3, t), root = sqrt(correction3); /* as in FOLD_ADAM */
    WITH_REST(beta1);
    WITH_REST(beta2);
    WITH_REST(beta3);
    c->weight = weight;
    c->past = t == 1.0 ? 0.0 : 1.0;
    c->rate = h->lr * root / (1.0 - pow(h->beta1, t));
    c->rate_diff = h->lr * weight * root / (1.0 - pow(h->beta2, t));
    c->eps = h->eps * root;
    c->eps_root = h->eps_root * correction3;
    c->shrink = 1.0 / (1.0 + h->lr * h->proximal_weight_decay);
}

FOLD(ademamix)
{
    const double correction2 = 1.0 - pow(h->beta2, t), root = sqrt(correction2); /* as in FOLD_ADAM */
    double beta3 = h->beta3, alpha = h->alpha;
    if (t < h->warmup) { /* never if it is NaN */
        const double done = t / h->warmup, first = h->beta1 > 0.0 ? 1.0 / log(h->beta1) : 0.0;
        const double last = h->beta3 > 0.0 ? 1.0 / log(h->beta3) : 0.0, memory = (1.0 - done) * first + done * last;
        beta3 = memory < 0.0 ? exp(1.0 / memory) : 0.0;
        alpha *= done;
    }
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->beta3 = beta3;
    c->beta3_c = 1.0 - beta3;
    c->rate = h->lr * root / (1.0 - pow(h->beta1, t));
    c->rate_slow = h->lr * root * alpha;
    c->eps = h->eps * root;
    c->eps_root = h->eps_root * correction2;
}

FOLD(lars)
{
    c->mu = h->momentum;
    c->weight_decay = h->weight_decay;
    c->within = h->decay_inside ? h->weight_decay : 0.0;
    c->beside = h->decay_inside ? 0.0 : h->weight_decay;
    c->eps = h->eps;
    c->trust = h->trust_coefficient;
    c->gain = h->lr_inside ? h->lr : 1.0;
    c->rate = h->lr_inside ? 1.0 : h->lr;
}

STAGE(lars)
{
    const double norm = sqrt(sum->param_sum), below = sqrt(sum->grad_sum) + c->beside * norm + c->eps;
    const int plain = sum->param_sum == 0 || sum->grad_sum == 0;
    c->ratio = c->gain * (plain ? 1.0 : c->trust * norm / below);
}

FOLD(lamb)
{
    const double correction2 = 1.0 - pow(h->beta2, t), root = sqrt(correction2); /* as in FOLD_ADAM */
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->scale = root / (1.0 - pow(h->beta1, t));
    c->eps = h->eps * root;
    c->eps_root = h->eps_root * correction2;
    c->weight_decay = h->weight_decay;
    c->lr = h->lr;
}

STAGE(lamb)
{
    const int plain = sum->param_sum == 0 || sum->step_sum == 0;
    c->rate = c->lr * (plain ? 1.0 : sqrt(sum->param_sum) / sqrt(sum->step_sum));
}

FOLD(novograd)
{
    const double kept = t == 1.0 ? 0.0 : h->beta2; /* the first average is the first norm */
    c->beta1 = h->beta1;
    c->gain = h->grad_averaging ? 1.0 - h->beta1 : 1.0;
    c->beta2 = kept;
    c->beta2_c = 1.0 - kept;
    c->eps = h->eps;
    c->eps_root = h->eps_root;
    c->weight_decay = h->weight_decay;
    c->lr = h->lr;
}

STAGE(novograd)
{
    one->exp_avg_sq = c->beta2 * one->exp_avg_sq + c->beta2_c * sum->grad_sum;
    const double below = sqrt(one->exp_avg_sq + c->eps_root) + c->eps;
    c->scale = 1.0 / (below == 0 ? 1.0 : below);
}

FOLD(swats)
{
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->correction = 1.0 - pow(h->beta2, t);
    c->scale = h->lr * sqrt(c->correction) / (1.0 - pow(h->beta1, t));
    c->eps = h->eps;
    c->nearness = t == 1.0 ? 0.0 : h->eps; /* the first average is what it is of */
}

STAGE(swats)
{
    const int adam = one->phase == 0, measured = adam && sum->grad_sum != 0;
    const double found = sum->step_sum / (sum->grad_sum == 0 ? 1.0 : sum->grad_sum);
    const double average = c->beta2 * one->exp_avg2 + c->beta2_c * found;
    one->exp_avg2 = measured ? average : one->exp_avg2;
    const double settled = one->exp_avg2 / c->correction;
    const double away = settled < found ? found - settled : settled - found;
    const int ends = measured && settled > 0 && away < c->nearness;
    c->sgd = one->phase;
    c->gain = adam ? c->beta1_c : 1.0;
    one->rate = ends ? settled : one->rate;
    one->phase = ends ? 1.0 : one->phase;
    c->step_rate = c->beta1_c * one->rate;
    c->kept = ends ? 0.0 : 1.0;
}

FOLD(adaptive_revision)
{
    c->lr = h->lr;
    c->read = h->read;
}

FOLD(dc_asgd)
{
    c->lr = h->lr;
    c->lambd = h->lambd;
    c->read = h->read;
}

FOLD(dc_asgd_adaptive)
{
    c->lr = h->lr;
    c->lambd0 = h->lambd0;
    WITH_REST(alpha);
    c->eps_root = h->eps_root;
    c->read = h->read;
}

FOLD(prodigy)
{
    double lr = h->lr;
    if (h->use_bias_correction)
        lr = lr * sqrt(1.0 - pow(h->beta2, t)) / (1.0 - pow(h->beta1, t));
    WITH_REST(beta1);
    WITH_REST(beta2);
    c->beta3 = isnan(h->beta3) ? sqrt(h->beta2) : h->beta3;
    c->gain = (h->safeguard_warmup ? 1.0 : lr) / h->d0;
    c->progress = lr / h->d0;
    c->counted = lr > 0 ? 1.0 : 0.0;
    c->within = h->decouple ? 0.0 : h->weight_decay;
    c->beside = h->decouple ? h->weight_decay : 0.0;
    c->lr = lr;
    c->eps = h->eps;
    c->d0 = h->d0;
    c->d_coef = h->d_coef;
    c->growth = isnan(h->growth_rate) || isinf(h->growth_rate) ? 0.0 : h->growth_rate;
}

STAGE(prodigy)
{
    const int moves = sum->s_sum != 0;
    const double numerator = c->beta3 * one->d_numerator + sum->gradient_sum;
    const double found = c->d_coef * numerator / (moves ? sum->s_sum : 1.0), d = one->d;
    const double largest = found > one->d_max ? found : one->d_max;
    const double grown = c->growth * (d == c->d0 && found > d ? found : d);
    const double after = c->growth != 0 && grown < largest ? grown : largest;
    one->d = moves ? after : d;
    one->d_max = moves ? largest : one->d_max;
    one->d_numerator = moves ? numerator : one->d_numerator;
    c->rate = moves ? c->lr * d : 0.0;
    c->below = c->eps * one->d;
}

#endif
