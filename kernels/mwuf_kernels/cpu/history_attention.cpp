// Rows that attend to the events of their histories, forward and back: see history_attention.py.

#include <cmath>

#include "pool.h"
#include "rows.h"
#include "segments.h"

extern "C" {

// Shapes: query, out, d_out and d_query [rows, heads * width]; key, value and their gradients [distinct, heads * width];
// normalisers, the logarithms of the sums of e^score, [rows, heads]. The events of row r are event[offsets[group[r]]] up to
// the next offset.
struct Attention {
    long rows, distinct, heads, width, histories;
    const float *query, *key, *value;
    const int64_t *event, *offsets, *group;
    float *out, *normalisers;
    const float* d_out;
    float *d_query, *d_key, *d_value;
};

}  // extern "C"

namespace {

// Calls body with a width that the compiler knows, where it is a usual one: loops along a head are short.
template <typename Body>
inline void with_width(long width, Body&& body) {
    if (width == 16)
        body(std::integral_constant<long, 16>());
    else if (width == 32)
        body(std::integral_constant<long, 32>());
    else
        body(width);
}

// Rows of one history that go through its events together: a register holds one number of each. Fewer than FEW are taken
// one by one, as most of a register would be empty.
constexpr long TOGETHER = 2 * V, FEW = V / 2;

struct Heads : Attention {
    Segments by_history;
    std::vector<std::pair<long, long>> pieces;  // of by_history.order, from and to

    explicit Heads(const Attention& attention) : Attention(attention) {
        by_history.sort(group, rows, histories);
        for (long g = 0; g < histories; g++)
            for (long at = by_history.offsets[g]; at < by_history.offsets[g + 1]; at += TOGETHER)
                pieces.push_back({at, least(at + TOGETHER, by_history.offsets[g + 1])});
    }

    double ns() const {
        double cells = 0;
        for (long row = 0; row < rows; row++) cells += double(length(row));
        return cells * double(heads) * (4 + double(width) / V);
    }
    float scale() const { return 1 / std::sqrt(float(width)); }
    long first(long row) const { return offsets[group[row]]; }
    long length(long row) const { return offsets[group[row] + 1] - offsets[group[row]]; }

    // query . key of each event of a row: [length], and what is behind it in the last register is far below.
    template <typename Width>
    void scores(long row, long head, Width n, float* to) const {
        const int64_t* of = event + first(row);
        const float* q = query + (row * heads + head) * n;
        const long number = length(row);
        for (long j = 0; j < number; j++) to[j] = scale() * dot(q, key + (of[j] * heads + head) * n, n);
        for (long j = number; j % V; j++) to[j] = -INFINITY;
    }

    // e^(score - normaliser) of each, in place; returns their sum.
    static float weights(long number, float normaliser, float* scores) {
        Vec sum{};
        for (long j = 0; j < number; j += V) {
            const Vec weight = exp_of_negative(load(scores + j) - normaliser);
            store(scores + j, weight);
            sum += weight;
        }
        return sum_of_lanes(sum);
    }

    template <typename Width>
    void forward(long row, long head, Width n) const {
        const int64_t* of = event + first(row);
        const long number = length(row);
        float *to = out + (row * heads + head) * n, *normaliser = normalisers + row * heads + head;
        std::memset(to, 0, n * sizeof(float));
        *normaliser = 0;
        if (!number) return;
        float* weight = workspace<Kept::ForTheTask>(number + V);
        scores(row, head, n, weight);
        float most = weight[0];
        for (long j = 1; j < number; j++) most = weight[j] > most ? weight[j] : most;
        const float sum = weights(number, most, weight);
        *normaliser = most + std::log(sum);
        for (long j = 0; j < number; j++) add_times(to, weight[j], value + (of[j] * heads + head) * n, n);
        times(to, 1 / sum, to, n);
    }

    // Of the output o = sum_j p_j v_j: dv_j += p_j do, ds_j = p_j (do . v_j - do . o), dq = sum_j ds_j k_j, dk_j += ds_j q.
    template <typename Width>
    void back(long row, long head, Width n) const {
        const int64_t* of = event + first(row);
        const long number = length(row), at = (row * heads + head) * n;
        const float *q = query + at, *d = d_out + at;
        float* dq = d_query + at;
        std::memset(dq, 0, n * sizeof(float));
        if (!number) return;
        float* weight = workspace<Kept::ForTheTask>(number + V);
        scores(row, head, n, weight);
        weights(number, normalisers[row * heads + head], weight);
        const float of_all = dot(d, out + at, n);
        for (long j = 0; j < number; j++) {
            const long place = (of[j] * heads + head) * n;
            const float slope = scale() * weight[j] * (dot(d, value + place, n) - of_all);
            add_times(dq, slope, key + place, n);
            add_times(d_key + place, slope, q, n);
            add_times(d_value + place, weight[j], d, n);
        }
    }

    // Columns of rows: out[i, t] = factor * from[row t, head, i] for t < number, zeros up to `padded`.
    void turn(const int32_t* of, long number, long padded, long head, const float* from, float factor, float* to) const {
        for (long i = 0; i < width; i++)
            for (long t = 0; t < padded; t++)
                to[i * padded + t] = t < number ? factor * from[(of[t] * heads + head) * width + i] : 0;
    }
    // Columns of a head of the rows of a history's events, side by side.
    void gather(long row, long head, const float* from, float* to) const {
        for (long j = 0; j < length(row); j++)
            copy_of(to + j * width, from + (event[first(row) + j] * heads + head) * width, width);
    }

    // As `forward`, of rows of one history: scores [length, padded], a column a row.
    void forward_together(const int32_t* of, long number) const {
        const long events = length(of[0]), padded = (number + V - 1) / V * V;
        float* gathered = workspace<Kept::ForTheTask>(events * (width + padded) + (2 * width + 1) * padded);
        float *score = gathered + events * width, *turned = score + events * padded, *found = turned + width * padded;
        float* sums = found + width * padded;
        for (long head = 0; head < heads; head++) {
            gather(of[0], head, key, gathered);
            turn(of, number, padded, head, query, scale(), turned);
            product<Then::Nothing>(events, padded, width, {gathered, width, 1}, {turned, padded, 1}, NONE, NONE, score, padded);
            for (long t = 0; t < padded; t += V) {
                Vec most = load(score + t), sum{};
                for (long j = 1; j < events; j++) {
                    const Vec x = load(score + j * padded + t);
                    most = x > most ? x : most;
                }
                for (long j = 0; j < events; j++) {
                    const Vec weight = exp_of_negative(load(score + j * padded + t) - most);
                    store(score + j * padded + t, weight);
                    sum += weight;
                }
                store(sums + t, sum);
                for (long k = t; k < least(t + V, number); k++) normalisers[of[k] * heads + head] = most[k - t] + std::log(sum[k - t]);
            }
            gather(of[0], head, value, gathered);
            product<Then::Nothing>(width, padded, events, {gathered, 1, width}, {score, padded, 1}, NONE, NONE, found, padded);
            for (long k = 0; k < number; k++)
                for (long i = 0; i < width; i++) out[(of[k] * heads + head) * width + i] = found[i * padded + k] / sums[k];
        }
    }

    // As `back`, likewise.
    void back_together(const int32_t* of, long number, long head) const {
        const long events = length(of[0]), padded = (number + V - 1) / V * V, size = events * width;
        float* keys = workspace<Kept::ForTheTask>(3 * size + 2 * events * padded + (5 * width + 2) * padded);
        float *values = keys + size, *d_gathered = values + size, *weight = d_gathered + size, *slope = weight + events * padded;
        float *turned = slope + events * padded, *d_turned = turned + width * padded, *d_found = d_turned + width * padded;
        float *plain = d_found + width * padded, *d_plain = plain + width * padded, *normaliser = d_plain + width * padded;
        float* of_all = normaliser + padded;
        gather(of[0], head, key, keys);
        gather(of[0], head, value, values);
        turn(of, number, padded, head, query, scale(), turned);
        turn(of, number, padded, head, d_out, 1, d_turned);
        for (long t = 0; t < padded; t++) normaliser[t] = of_all[t] = 0;
        for (long t = 0; t < number; t++) {
            const long at = (of[t] * heads + head) * width;
            normaliser[t] = normalisers[of[t] * heads + head];
            of_all[t] = dot(d_out + at, out + at, width);
            times(plain + t * width, scale(), query + at, width);
            copy_of(d_plain + t * width, d_out + at, width);
        }
        product<Then::Nothing>(events, padded, width, {keys, width, 1}, {turned, padded, 1}, NONE, NONE, weight, padded);
        product<Then::Nothing>(events, padded, width, {values, width, 1}, {d_turned, padded, 1}, NONE, NONE, slope, padded);
        for (long j = 0; j < events; j++)
            for (long t = 0; t < padded; t += V) {
                const Vec p = exp_of_negative(load(weight + j * padded + t) - load(normaliser + t));
                store(weight + j * padded + t, p);
                store(slope + j * padded + t, p * (load(slope + j * padded + t) - load(of_all + t)));
            }
        product<Then::Nothing>(width, padded, events, {keys, 1, width}, {slope, padded, 1}, NONE, NONE, d_found, padded);
        for (long k = 0; k < number; k++)
            for (long i = 0; i < width; i++) d_query[(of[k] * heads + head) * width + i] = scale() * d_found[i * padded + k];
        scatter(of[0], head, number, padded, slope, plain, d_gathered, d_key);
        scatter(of[0], head, number, padded, weight, d_plain, d_gathered, d_value);
    }

    // Adds the product of cells [length, number] and rows [number, width] to the gradient of the events.
    void scatter(long row, long head, long number, long padded, const float* cells, const float* of_rows, float* room,
                 float* to) const {
        product<Then::Nothing>(length(row), width, number, {cells, padded, 1}, {of_rows, width, 1}, NONE, NONE, room, width);
        for (long j = 0; j < length(row); j++)
            add_to(to + (event[first(row) + j] * heads + head) * width, room + j * width, width);
    }
};

}  // namespace

extern "C" {

long mwuf_size_of_attention() { return sizeof(Attention); }

void mwuf_attention(const Attention* attention) {
    const Heads heads(*attention);
    in_parallel(long(heads.pieces.size()), heads.ns(), [&](long piece) {
        const auto [from, to] = heads.pieces[piece];
        const int32_t* of = heads.by_history.order.data() + from;
        if (to - from >= FEW && heads.length(of[0])) return heads.forward_together(of, to - from);
        with_width(heads.width, [&](auto n) {
            for (long at = 0; at < to - from; at++)
                for (long head = 0; head < heads.heads; head++) heads.forward(of[at], head, n);
        });
    });
}

// Rows share events, so heads are the tasks: of each, a row's gradients are added after those of the row before.
void mwuf_attention_back(const Attention* attention) {
    const Heads heads(*attention);
    const long floats = heads.distinct * heads.heads * heads.width;
    std::memset(heads.d_key, 0, floats * sizeof(float));
    std::memset(heads.d_value, 0, floats * sizeof(float));
    in_parallel(heads.heads, 2.5 * heads.ns(), [&](long head) {
        for (const auto& [from, to] : heads.pieces) {
            const int32_t* of = heads.by_history.order.data() + from;
            const long number = to - from;
            if (number >= FEW && heads.length(of[0]))
                heads.back_together(of, number, head);
            else
                with_width(heads.width, [&](auto n) {
                    for (long at = 0; at < number; at++) heads.back(of[at], head, n);
                });
        }
    });
}

}  // extern "C"
