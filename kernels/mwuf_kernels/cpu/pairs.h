// Products of pairs of a row's fields, and what their gradients are made of.

#pragma once

#include "rows.h"

namespace {

// <f_i, f_j> of all pairs i < j of fields at(i) [dim], in the order of i, then j; returns the end of `out`.
template <typename At>
inline float* products_of_pairs(long num, long dim, At at, float* out) {
    for (long i = 0; i < num; i++)
        for (long j = i + 1; j < num; j++) *out++ = dot(at(i), at(j), dim);
    return out;
}

// Puts what pairs i < j have where the symmetric matrix [num, num] has it; its diagonal stays.
inline void matrix_of_pairs(long num, const float* pairs, float* matrix) {
    for (long i = 0; i < num; i++)
        for (long j = i + 1; j < num; j++) matrix[i * num + j] = matrix[j * num + i] = *pairs++;
}

}  // namespace
