// Rows of tables for the entities of a batch, and their gradients back: see table_rows.py.

#include "rows.h"

namespace {

// How many values field f of an entity has.
long bag(const int64_t* lengths, long entity, long num_fields, long f) {
    return lengths ? lengths[entity * num_fields + f] : 1;
}

}  // namespace

extern "C" {

// The values of an entity are ids[starts[entity]...], lengths[entity, f] of each field f in turn; without lengths one of
// each, from entity * step on; without ids the entity itself. A bag of several is their sum or, with mean, mean.
void mwuf_table_rows(long n, long dim, long num_fields, long step, long mean, const float* table, const int64_t* ids,
                     const int64_t* lengths, const int64_t* starts, const int64_t* entities, float* out) {
    for (long i = 0; i < n; i++) {
        const int64_t entity = entities[i];
        const int64_t* value = ids ? ids + (starts ? starts[entity] : entity * step) : entities + i;
        for (long f = 0; f < num_fields; f++, out += dim) {
            const long length = bag(lengths, entity, num_fields, f);
            if (length == 0) std::memset(out, 0, dim * sizeof(float));
            for (long k = 0; k < length; k++, value++) {
                if (k == 0)
                    copy_of(out, table + *value * dim, dim);
                else
                    add_to(out, table + *value * dim, dim);
            }
            if (mean && length > 1)
                for (long c = 0; c < dim; c++) out[c] /= float(length);
        }
    }
}

// Adds the gradient of those rows to that of the table.
void mwuf_add_table_rows(long n, long dim, long num_fields, long step, long mean, float* gradient, const int64_t* ids,
                         const int64_t* lengths, const int64_t* starts, const int64_t* entities, const float* d_out) {
    for (long i = 0; i < n; i++) {
        const int64_t entity = entities[i];
        const int64_t* value = ids ? ids + (starts ? starts[entity] : entity * step) : entities + i;
        for (long f = 0; f < num_fields; f++, d_out += dim) {
            const long length = bag(lengths, entity, num_fields, f);
            const float share = mean && length > 1 ? 1 / float(length) : 1.0f;
            for (long k = 0; k < length; k++, value++) add_times(gradient + *value * dim, share, d_out, dim);
        }
    }
}

// Adds the rows of users [n] to the sums of items [n], and 1 to the items' counts, one after another.
void mwuf_add_users(long n, long dim, const float* rows, const int64_t* users, const int64_t* items, float* sums,
                    int64_t* counts) {
    for (long i = 0; i < n; i++) {
        add_to(sums + items[i] * dim, rows + users[i] * dim, dim);
        counts[items[i]]++;
    }
}

// The distinct values of ids [n] < num_ids in order, of each id its place among them, and how many there are.
void mwuf_distinct(long n, long num_ids, const int64_t* ids, int32_t* place, int64_t* values, int64_t* inverse,
                   int64_t* count) {
    std::memset(place, 0, num_ids * sizeof(int32_t));
    for (long i = 0; i < n; i++) place[ids[i]] = 1;
    long found = 0;
    for (long id = 0; id < num_ids; id++) {
        if (!place[id]) continue;
        values[found] = id;
        place[id] = int32_t(found++);
    }
    for (long i = 0; i < n; i++) inverse[i] = place[ids[i]];
    *count = found;
}

}  // extern "C"
