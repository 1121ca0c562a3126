// Inner products of all pairs of a row's fields, forward and back: see pair_products.py.

#include "pairs.h"
#include "pool.h"

namespace {

// body(row) for the rows, a block of them a task.
template <typename Body>
void by_row(long rows, double ns_of_row, Body&& body) {
    in_parallel((rows + BLOCK - 1) / BLOCK, double(rows) * ns_of_row, [&](long task) {
        for (long row = task * BLOCK; row < least(task * BLOCK + BLOCK, rows); row++) body(row);
    });
}

}  // namespace

extern "C" {

// fields [rows, num, dim], out [rows, num (num - 1) / 2].
void mwuf_pair_products(long rows, long num, long dim, const float* fields, float* out) {
    const long num_pairs = num * (num - 1) / 2, size = num * dim;
    by_row(rows, double(num_pairs) * (4 + double(dim) / V), [&](long row) {
        const float* of_row = fields + row * size;
        products_of_pairs(num, dim, [&](long i) { return of_row + i * dim; }, out + row * num_pairs);
    });
}

// d_fields = D fields of each row, with D [num, num] of d_out and a diagonal of zeros.
void mwuf_pair_products_back(long rows, long num, long dim, const float* fields, const float* d_out, float* d_fields) {
    const long num_pairs = num * (num - 1) / 2, size = num * dim;
    by_row(rows, double(num * num) * (1 + double(dim) / (4 * V)), [&](long row) {
        float* matrix = workspace<Kept::ForTheTask>(num * num);
        for (long i = 0; i < num; i++) matrix[i * num + i] = 0;
        matrix_of_pairs(num, d_out + row * num_pairs, matrix);
        product<Then::Nothing>(num, dim, num, {matrix, num, 1}, {fields + row * size, dim, 1}, NONE, NONE,
                               d_fields + row * size, dim);
    });
}

}  // extern "C"
