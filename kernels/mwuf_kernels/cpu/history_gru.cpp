// The last state of a gated recurrent unit over the events of each history, forward and back: see history_gru.py.

#include "partial_sums.h"
#include "pool.h"
#include "rows.h"
#include "segments.h"

extern "C" {

// Shapes: gates and d_gates [distinct, 3 dim], of r, z and n; weight, d_weight [3 dim, dim]; bias, d_bias [3 dim]; out,
// d_out [histories, dim]. The events of history g are index[offsets[g]] up to the next offset. Of each event, states
// [events, dim] and kept [events, 4 dim] (r, z, n and n's part of the state) are for the way back; null where there is
// none, and d_events [events, 3 dim] is room for it.
struct Gru {
    long histories, distinct, dim;
    const float *gates, *weight, *bias;
    const int64_t *index, *offsets;
    float *out, *states, *kept;
    const float* d_out;
    float *d_events, *d_gates, *d_weight, *d_bias;
};

}  // extern "C"

namespace {

inline Vec sigmoid(Vec x) {
    const Vec e = exp_of_negative(x < 0 ? x : -x), likely = 1 / (1 + e);
    return x < 0 ? e * likely : likely;
}
inline Vec tanh_of(Vec x) {
    const Vec e = exp_of_negative(x < 0 ? 2 * x : -2 * x), size = (1 - e) / (1 + e);
    return x < 0 ? -size : size;
}

// Histories, longest first, so that those that have an event t are the first ones.
struct Recurrence : Gru {
    std::vector<int32_t> order;

    explicit Recurrence(const Gru& gru) : Gru(gru), order(gru.histories) {
        long longest = 0;
        for (long g = 0; g < histories; g++) longest = length(g) > longest ? length(g) : longest;
        std::vector<int32_t> place(longest + 2, 0);
        for (long g = 0; g < histories; g++) place[longest - length(g) + 1]++;
        for (long l = 1; l <= longest + 1; l++) place[l] += place[l - 1];
        for (long g = 0; g < histories; g++) order[place[longest - length(g)]++] = int32_t(g);
    }

    long length(long g) const { return offsets[g + 1] - offsets[g]; }
    double ns() const { return double(offsets[histories]) * double(dim) * (5 + 3.0 * double(dim)) / (2 * V); }
    long with_event(long t, long start, long most) const {
        long rows = 0;
        while (rows < most && length(order[start + rows]) > t) rows++;
        return rows;
    }

    // Of `rows` histories from start on; turned is the weight [dim, 3 dim].
    void forward(long start, long rows, const float* turned) const {
        float *state = workspace<Kept::ForTheTask>(4 * BLOCK * dim), *of_state = state + BLOCK * dim;
        std::memset(state, 0, BLOCK * dim * sizeof(float));
        for (long t = 0, n; (n = with_event(t, start, rows)); t++) {
            product<Then::Nothing>(n, 3 * dim, dim, {state, dim, 1}, {turned, 3 * dim, 1}, {bias, 0, 1}, NONE, of_state, 3 * dim);
            for (long row = 0; row < n; row++) {
                const long event = offsets[order[start + row]] + t;
                const float *of_item = gates + index[event] * 3 * dim, *own = of_state + 3 * row * dim;
                for (long i = 0; i < dim; i += V) {
                    const long lanes = least(V, dim - i);
                    float* h = state + row * dim + i;
                    const Vec r = sigmoid(part(of_item + i, lanes) + part(own + i, lanes));
                    const Vec z = sigmoid(part(of_item + dim + i, lanes) + part(own + dim + i, lanes));
                    const Vec of_n = part(own + 2 * dim + i, lanes);
                    const Vec next = tanh_of(part(of_item + 2 * dim + i, lanes) + r * of_n);
                    put(h, next + z * (part(h, lanes) - next), lanes);
                    if (!states) continue;
                    put(states + event * dim + i, part(h, lanes), lanes);
                    float* to = kept + 4 * event * dim + i;
                    put(to, r, lanes), put(to + dim, z, lanes), put(to + 2 * dim, next, lanes), put(to + 3 * dim, of_n, lanes);
                }
            }
        }
        for (long row = 0; row < rows; row++) copy_of(out + order[start + row] * dim, state + row * dim, dim);
    }

    // Likewise; adds to a span's own gradients of the weight and the bias.
    void back(long start, long rows, float* of_weight, float* of_bias) const {
        float *d_state = workspace<Kept::ForTheTask>(6 * BLOCK * dim), *before = d_state + BLOCK * dim;
        float *rest = before + BLOCK * dim, *d = rest + BLOCK * dim;  // d: of the state's parts of the gates
        for (long row = 0; row < rows; row++) copy_of(d_state + row * dim, d_out + order[start + row] * dim, dim);
        for (long t = length(order[start]) - 1; t >= 0; t--) {
            const long n = with_event(t, start, rows);
            for (long row = 0; row < n; row++) {
                const long event = offsets[order[start + row]] + t;
                for (long i = 0; i < dim; i += V) {
                    const long lanes = least(V, dim - i);
                    const float* from = kept + 4 * event * dim + i;
                    const Vec r = part(from, lanes), z = part(from + dim, lanes), next = part(from + 2 * dim, lanes);
                    const Vec h = t ? part(states + (event - 1) * dim + i, lanes) : Vec{};
                    const Vec slope = part(d_state + row * dim + i, lanes);
                    const Vec d_n = slope * (1 - z) * (1 - next * next), d_z = slope * (h - next) * z * (1 - z);
                    const Vec d_r = d_n * part(from + 3 * dim, lanes) * r * (1 - r);
                    float *of_item = d_events + 3 * event * dim + i, *own = d + 3 * row * dim + i;
                    put(of_item, d_r, lanes), put(of_item + dim, d_z, lanes), put(of_item + 2 * dim, d_n, lanes);
                    put(own, d_r, lanes), put(own + dim, d_z, lanes), put(own + 2 * dim, d_n * r, lanes);
                    put(before + row * dim + i, h, lanes), put(rest + row * dim + i, slope * z, lanes);
                }
                add_to(of_bias, d + 3 * row * dim, 3 * dim);
            }
            product<Then::Nothing>(n, dim, 3 * dim, {d, 3 * dim, 1}, {weight, dim, 1}, {rest, dim, 1}, NONE, d_state, dim);
            if (t) product<Then::Nothing>(3 * dim, dim, n, {d, 1, 3 * dim}, {before, dim, 1}, {of_weight, dim, 1}, NONE, of_weight, dim);
        }
    }
};

}  // namespace

extern "C" {

long mwuf_size_of_gru() { return sizeof(Gru); }

void mwuf_gru(const Gru* gru) {
    const Recurrence all(*gru);
    const long dim = all.dim;
    std::vector<float> turned(3 * dim * dim);
    for (long g = 0; g < 3 * dim; g++)
        for (long i = 0; i < dim; i++) turned[i * 3 * dim + g] = all.weight[g * dim + i];
    in_parallel((all.histories + BLOCK - 1) / BLOCK, all.ns(), [&](long block) {
        all.forward(block * BLOCK, least(BLOCK, all.histories - block * BLOCK), turned.data());
    });
}

void mwuf_gru_back(const Gru* gru) {
    const Recurrence all(*gru);
    const long dim = all.dim, n = all.histories;
    PartialSums sums(spans_of(n));
    const long at_weight = sums.add(all.d_weight, 3 * dim, dim, dim), at_bias = sums.add(all.d_bias, 3 * dim);
    sums.use(workspace<Kept::ForTheCall>(sums.floats()));
    in_parallel(spans_of(n), 2 * all.ns(), [&](long span) {
        float* own = sums.clear(span);
        const long stop = least((span + 1) * span_rows(n), n);
        for (long start = span * span_rows(n); start < stop; start += BLOCK)
            all.back(start, least(BLOCK, stop - start), own + at_weight, own + at_bias);
    });
    add_up({&sums});
    const long events = all.offsets[n];
    Segments of_items;
    of_items.sort(all.index, events, all.distinct);
    in_parallel(all.distinct, double(events) * double(dim) * 3 / V, [&](long item) {
        float* to = all.d_gates + item * 3 * dim;
        std::memset(to, 0, 3 * dim * sizeof(float));
        of_items.for_each(item, [&](long event) { add_to(to, all.d_events + event * 3 * dim, 3 * dim); });
    });
}

}  // extern "C"
