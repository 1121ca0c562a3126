// Products of learned powers of fields, as exponentials of sums of their logarithms.

#pragma once

#include "rows.h"

namespace {

// ln |e| of a register; what is below `smallest` counts as it.
inline Vec log_of_size(Vec e, float smallest) {
    const Vec size = e < 0 ? -e : e;
    return log_of(size < smallest ? Vec{} + smallest : size);
}
// d of ln |e| becomes that of e.
inline Vec log_back(Vec d, Vec e, float smallest) {
    const Vec size = e < 0 ? -e : e;
    return size < smallest ? Vec{} : d / e;
}

// to [n, neurons] = exp(from [fields, n] turned x weight [fields, neurons] + bias [neurons])
inline void raise(long n, long fields, long neurons, const float* from, const float* weight, const float* bias, float* to) {
    product<Then::Nothing>(n, neurons, fields, {from, 1, n}, {weight, neurons, 1}, {bias, 0, 1}, NONE, to, neurons);
    for (long i = 0; i < n * neurons; i += V) {
        const long lanes = least(V, n * neurons - i);
        put(to + i, exp_of(part(to + i, lanes)), lanes);
    }
}

}  // namespace
