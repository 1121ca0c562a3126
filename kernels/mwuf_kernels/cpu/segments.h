// The places of an index by the row that they name, so that each row's sum is made by one task, in the order of places.

#pragma once

#include <cstdint>
#include <vector>

namespace {

struct Segments {
    std::vector<int32_t> order, offsets;  // row i is named at places order[offsets[i]...offsets[i + 1]]

    // A counting sort of index [n], each in [0, rows).
    void sort(const int64_t* index, long n, long rows) {
        offsets.assign(rows + 2, 0);
        order.resize(n);
        for (long i = 0; i < n; i++) offsets[index[i] + 2]++;
        for (long row = 2; row <= rows; row++) offsets[row] += offsets[row - 1];
        for (long i = 0; i < n; i++) order[offsets[index[i] + 1]++] = int32_t(i);
    }

    template <typename Body>
    void for_each(long row, Body&& body) const {
        for (int32_t i = offsets[row]; i < offsets[row + 1]; i++) body(order[i]);
    }
};

}  // namespace
