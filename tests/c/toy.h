/* The twins of tests/toy.py's rules. */
UPDATE(toy)
{
    const real ahead = g + c->weight * (*p - s->old), pull = c->pull;
    s->average = c->mix * s->average + c->mix_c * ahead;
    s->largest = FN(maximum)(s->largest, ahead * ahead);
    s->total = s->total + ahead * s->drift;
    const real below = s->side - pull, above = s->side + pull * s->drift;
    s->side = s->old > *p ? below : above;
    *p -= c->rate * (s->average / (SQRT(s->largest) + pull) + c->weight * (s->total - s->side));
}

UPDATE(toy_measured)
{
    s->m = c->mix * s->m + (g + (*p - s->old));
    *p -= c->rate * s->m;
}

MEASURE(toy_measured)
{
    factors[0][0] = factors[0][1] = p - s->old;
    factors[1][0] = g;
    factors[1][1] = c->mix * g;
}

#ifdef FASTOPT_FOLDS
FOLD(toy_measured)
{
    c->mix = h->beta;
}

STAGE(toy_measured)
{
    c->rate = c->mix / (1.0 + sqrt(sum->moved) + sqrt(sum->square));
}

FOLD(toy)
{
    scalars[0] *= h->beta;
    scalars[1] += h->lr;
    c->rate = h->lr * (1.0 - scalars[0]);
    c->mix = h->beta;
    c->mix_c = 1.0 - h->beta;
    c->weight = scalars[0];
    c->pull = h->power / (1.0 + scalars[1]);
}
#endif
