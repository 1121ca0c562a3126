// Rows of tables for the entities of a batch, and their gradients back: see table_rows.py.

#include "pool.h"
#include "rows.h"

namespace {

// Which rows of a table the fields of each entity have, as table_rows.py says.
struct Fields {
    long num_fields, step;
    bool mean;
    const int64_t *ids, *lengths, *starts, *entities;

    // body(field, its rows, how many they are) for the fields of entity number i.
    template <typename Body>
    void each(long i, Body&& body) const {
        const int64_t entity = entities[i];
        const int64_t* value = ids ? ids + (starts ? starts[entity] : entity * step) : entities + i;
        for (long f = 0; f < num_fields; f++) {
            const long length = lengths ? lengths[entity * num_fields + f] : 1;
            body(f, value, length);
            value += length;
        }
    }

    // What of its gradient each of so many rows gets.
    float share(long length) const { return mean && length > 1 ? 1 / float(length) : 1.0f; }
};

constexpr long ENTITIES = 256;  // of a task
constexpr long BINS = 64;       // of the table's rows, by their number

struct Addition {
    int64_t row, place;  // place: which entity's which field
    float share;
};

// The additions of some entities, bin by bin; in a bin in the order of the entities.
struct Sorted {
    std::vector<Addition> additions;
    long begin[BINS + 1] = {};

    Sorted() = default;
    void sort(const Fields& fields, long first, long last) {
        for (long i = first; i < last; i++)
            fields.each(i, [&](long, const int64_t* rows, long length) {
                for (long k = 0; k < length; k++) begin[rows[k] % BINS + 1]++;
            });
        for (long bin = 0; bin < BINS; bin++) begin[bin + 1] += begin[bin];
        additions.resize(begin[BINS]);
        long next[BINS];
        std::memcpy(next, begin, sizeof(next));
        for (long i = first; i < last; i++)
            fields.each(i, [&](long f, const int64_t* rows, long length) {
                for (long k = 0; k < length; k++)
                    additions[next[rows[k] % BINS]++] = {rows[k], i * fields.num_fields + f, fields.share(length)};
            });
    }
};

}  // namespace

extern "C" {

// The values of an entity are ids[starts[entity]...], lengths[entity, f] of each field f in turn; without lengths one of
// each, from entity * step on; without ids the entity itself. A bag of several is their sum or, with mean, mean.
void mwuf_table_rows(long n, long dim, long num_fields, long step, long mean, const float* table, const int64_t* ids,
                     const int64_t* lengths, const int64_t* starts, const int64_t* entities, float* out) {
    const Fields fields{num_fields, step, mean != 0, ids, lengths, starts, entities};
    const double ns = double(n * num_fields) * (3 + 2.0 * double(dim) / V);
    in_parallel((n + ENTITIES - 1) / ENTITIES, ns, [&](long task) {
        for (long i = task * ENTITIES; i < least((task + 1) * ENTITIES, n); i++)
            fields.each(i, [&](long f, const int64_t* rows, long length) {
                float* to = out + (i * num_fields + f) * dim;
                if (length == 0) std::memset(to, 0, dim * sizeof(float));
                for (long k = 0; k < length; k++)
                    k ? add_to(to, table + rows[k] * dim, dim) : copy_of(to, table + rows[k] * dim, dim);
                if (mean && length > 1)
                    for (long c = 0; c < dim; c++) to[c] /= float(length);
            });
    });
}

// Adds the gradient of those rows to that of the table: to each row in the order of the entities.
void mwuf_add_table_rows(long n, long dim, long num_fields, long step, long mean, float* gradient, const int64_t* ids,
                         const int64_t* lengths, const int64_t* starts, const int64_t* entities, const float* d_out) {
    const Fields fields{num_fields, step, mean != 0, ids, lengths, starts, entities};
    const double ns = double(n * num_fields) * (5 + 2.0 * double(dim) / V);
    if (!worth_threads(ns)) {
        for (long i = 0; i < n; i++)
            fields.each(i, [&](long f, const int64_t* rows, long length) {
                for (long k = 0; k < length; k++)
                    add_times(gradient + rows[k] * dim, fields.share(length), d_out + (i * num_fields + f) * dim, dim);
            });
        return;
    }
    // Two entities may share a row, so rows are the tasks: a bin of them, with all that is added to it.
    std::vector<Sorted> sorted((n + ENTITIES - 1) / ENTITIES);
    in_parallel(long(sorted.size()), ns, [&](long task) {
        sorted[task].sort(fields, task * ENTITIES, least((task + 1) * ENTITIES, n));
    });
    in_parallel(BINS, ns, [&](long bin) {
        for (const Sorted& part : sorted)
            for (long i = part.begin[bin]; i < part.begin[bin + 1]; i++) {
                const Addition& one = part.additions[i];
                add_times(gradient + one.row * dim, one.share, d_out + one.place * dim, dim);
            }
    });
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

// The same by sorting, where there may be many more than n: byte by byte, with the place of each id in its lowest bits.
void mwuf_distinct_of_many(long n, const int64_t* ids, uint64_t* sorted, uint64_t* other, int64_t* values,
                           int64_t* inverse, int64_t* count) {
    int64_t largest = 0;
    for (long i = 0; i < n; i++) largest = ids[i] > largest ? ids[i] : largest;
    int place_bits = 0, last_bit = 0;
    while (n >> place_bits) place_bits++;
    while (last_bit < 63 && largest >> last_bit) last_bit++;
    for (long i = 0; i < n; i++) sorted[i] = uint64_t(ids[i]) << place_bits | uint64_t(i);
    for (int shift = place_bits; shift < place_bits + last_bit; shift += 8) {
        long next[257] = {};
        for (long i = 0; i < n; i++) next[(sorted[i] >> shift & 255) + 1]++;
        for (long digit = 0; digit < 256; digit++) next[digit + 1] += next[digit];
        for (long i = 0; i < n; i++) other[next[sorted[i] >> shift & 255]++] = sorted[i];
        std::swap(sorted, other);
    }
    long found = 0;
    for (long i = 0; i < n; i++) {
        const int64_t id = int64_t(sorted[i] >> place_bits);
        if (!found || values[found - 1] != id) values[found++] = id;
        inverse[sorted[i] & ((uint64_t(1) << place_bits) - 1)] = found - 1;
    }
    *count = found;
}

}  // extern "C"
