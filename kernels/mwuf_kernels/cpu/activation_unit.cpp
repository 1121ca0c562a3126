// What an item finds in a row's events by DIN's activation unit, forward and back: see activation_unit.py.

#include "partial_sums.h"
#include "pool.h"
#include "rows.h"
#include "segments.h"

extern "C" {

// Shapes: item, out, d_out, d_item [rows, dim]; events, d_events [distinct, dim], of which row r has those that history
// group[r] names: index[offsets[group[r]]] up to the next offset; weight [units, 3 dim], of an event, of its product with
// the item, and of the item; bias, relevance [units], a multiple of 16. Gradients of the weights are [dim, units] each;
// null, as d_events, where nobody asks for them. d_numbers: of PReLU's slope and of the constant.
struct Unit {
    long rows, distinct, dim, units;
    float slope, constant;
    const float *item, *events, *weight, *bias, *relevance;
    const int64_t *index, *offsets, *group;
    float* out;
    const float* d_out;
    float *d_item, *d_events, *d_event_weight, *d_product_weight, *d_item_weight, *d_bias, *d_relevance, *d_numbers;
};

}  // extern "C"

namespace {

struct ActivationUnit : Unit {
    std::vector<float> turned;  // the weight [3 dim, units]
    std::vector<long> starts;   // where a row's events begin, those of all rows one after another [rows + 1]
    long longest = 0;

    explicit ActivationUnit(const Unit& unit) : Unit(unit), turned(3 * dim * units), starts(rows + 1) {
        for (long u = 0; u < units; u++)
            for (long i = 0; i < 3 * dim; i++) turned[i * units + u] = weight[u * 3 * dim + i];
        for (long row = 0; row < rows; row++) {
            const long length = offsets[group[row] + 1] - offsets[group[row]];
            starts[row + 1] = starts[row] + length;
            longest = length > longest ? length : longest;
        }
    }

    double ns() const { return double(starts[rows] + rows) * double(dim * units + 4 * units) / (2 * V); }
    long length(long row) const { return starts[row + 1] - starts[row]; }
    const int64_t* named(long row) const { return index + offsets[group[row]]; }
    // A row's events side by side [length, dim].
    void gather(long row, float* to) const {
        for (long j = 0; j < length(row); j++) copy_of(to + j * dim, events + named(row)[j] * dim, dim);
    }
    const float* of_event() const { return turned.data(); }
    const float* of_product() const { return turned.data() + dim * units; }
    const float* of_item() const { return turned.data() + 2 * dim * units; }

    // What the item gives to each unit, of the rows of a block.
    void shares(long start, long number, float* to) const {
        product<Then::Nothing>(number, units, dim, {item + start * dim, dim, 1}, {of_item(), units, 1}, {bias, 0, 1}, NONE,
                               to, units);
    }

    // Each event's units before the PReLU, of a row: its item is a part of the weight `folded` [dim, units], as
    // e W + (e * v) P = e (W + v P).
    void before(long row, const float* of_row, const float* share, float* folded, float* sums) const {
        for (long i = 0; i < dim; i++) {
            const float v = item[row * dim + i], *plain = of_event() + i * units, *times_v = of_product() + i * units;
            for (long u = 0; u < units; u += V) store(folded + i * units + u, load(plain + u) + v * load(times_v + u));
        }
        product<Then::Nothing>(length(row), units, dim, {of_row, dim, 1}, {folded, units, 1}, {share, 0, 1}, NONE, sums,
                               units);
    }

    Vec activated(Vec x) const { return x > 0 ? x : slope * x; }

    void forward(long start, long number) const {
        float* share = workspace<Kept::ForTheTask>((BLOCK + dim + longest) * units + longest * (dim + 1));
        float *folded = share + BLOCK * units, *sums = folded + dim * units, *of_row = sums + longest * units;
        float* weights = of_row + longest * dim;
        shares(start, number, share);
        for (long row = start; row < start + number; row++) {
            gather(row, of_row);
            before(row, of_row, share + (row - start) * units, folded, sums);
            for (long j = 0; j < length(row); j++) {
                Vec weight{};
                for (long u = 0; u < units; u += V) weight += activated(load(sums + j * units + u)) * load(relevance + u);
                weights[j] = constant + sum_of_lanes(weight);
            }
            for (long i = 0; i < dim; i += V) {
                const long lanes = least(V, dim - i);
                Vec sum{};
                for (long j = 0; j < length(row); j++) sum += weights[j] * part(of_row + j * dim + i, lanes);
                put(out + row * dim + i, sum, lanes);
            }
        }
    }

    // Of n events whose weights have the gradients d_weights: x [n, units] becomes the gradient of the units before the
    // PReLU, and d_own [units] its sum. Sums of each event's lanes are its weight [n, V]; of_relevance [units] gets its
    // gradient added, and behind it that of the PReLU's slope. A register of units at a time, whose sums stay in others.
    void back_through(long n, float* x, const float* d_weights, float* weights, float* d_own, float* of_relevance) const {
        Vec of_slope{};
        for (long u = 0; u < units; u += V) {
            const Vec by = load(relevance + u);
            Vec all{}, of_unit{};
            for (long j = 0; j < n; j++) {
                const Vec of = load(x + j * units + u), active = activated(of), d = d_weights[j] * by;
                const Vec through = of > 0 ? d : slope * d;
                store(weights + j * V, (u ? load(weights + j * V) : Vec{}) + active * by);
                store(x + j * units + u, through);
                all += through;
                of_unit += d_weights[j] * active;
                of_slope += of > 0 ? Vec{} : d * of;
            }
            store(d_own + u, all);
            if (of_relevance) store(of_relevance + u, load(of_relevance + u) + of_unit);
        }
        if (of_relevance) of_relevance[units] += sum_of_lanes(of_slope);
    }

    // Into d_all [all rows' events, dim] those of events, where they are asked for.
    // Adds to a span's own gradients: of the weights [3][dim, units], the bias, the relevance and the two numbers.
    void back(long start, long number, float* d_all, float* own) const {
        float* share = workspace<Kept::ForTheTask>((2 * BLOCK + 3 * dim + longest) * units + longest * (dim + 1 + V));
        float *d_share = share + BLOCK * units, *folded = d_share + BLOCK * units, *sums = folded + dim * units;
        float *d_folded = sums + longest * units, *folded_turned = d_folded + dim * units;
        float *of_row = folded_turned + dim * units, *d_weights = of_row + longest * dim, *weights = d_weights + longest;
        const bool of_weights = d_bias != nullptr;
        float *of_bias = own + 3 * dim * units, *of_relevance = of_weights ? of_bias + units : nullptr;
        shares(start, number, share);
        for (long row = start; row < start + number; row++) {
            const float *d = d_out + row * dim, *v = item + row * dim;
            const long length = this->length(row);
            float* d_own = d_share + (row - start) * units;
            gather(row, of_row);
            before(row, of_row, share + (row - start) * units, folded, sums);
            for (long j = 0; j < length; j++) d_weights[j] = dot(d, of_row + j * dim, dim);
            back_through(length, sums, d_weights, weights, d_own, of_relevance);
            for (long j = 0; of_weights && j < length; j++) of_relevance[units + 1] += d_weights[j];
            for (long j = 0; d_events && j < length; j++)
                times(d_all + (starts[row] + j) * dim, constant + sum_of_lanes(load(weights + j * V)), d, dim);
            product<Then::Nothing>(dim, units, length, {of_row, 1, dim}, {sums, units, 1}, NONE, NONE, d_folded, units);
            for (long i = 0; i < dim; i++) {
                const float* of = d_folded + i * units;
                d_item[row * dim + i] = dot(of, of_product() + i * units, units);
                if (!of_weights) continue;
                add_to(own + i * units, of, units);
                add_times(own + (dim + i) * units, v[i], of, units);
            }
            if (!d_events) continue;
            for (long u = 0; u < units; u++)
                for (long i = 0; i < dim; i++) folded_turned[u * dim + i] = folded[i * units + u];
            float* to = d_all + starts[row] * dim;
            product<Then::Nothing>(length, dim, units, {sums, units, 1}, {folded_turned, dim, 1}, {to, dim, 1}, NONE, to, dim);
        }
        float* to = d_item + start * dim;
        product<Then::Nothing>(number, dim, units, {d_share, units, 1}, {weight + 2 * dim, 3 * dim, 1}, {to, dim, 1}, NONE,
                               to, dim);
        if (!of_weights) return;
        float* of_items = own + 2 * dim * units;
        product<Then::Nothing>(dim, units, number, {item + start * dim, 1, dim}, {d_share, units, 1}, {of_items, units, 1},
                               NONE, of_items, units);
        for (long row = 0; row < number; row++) add_to(of_bias, d_share + row * units, units);
    }
};

}  // namespace

extern "C" {

long mwuf_size_of_unit() { return sizeof(Unit); }

void mwuf_unit(const Unit* unit) {
    const ActivationUnit all(*unit);
    in_parallel((all.rows + BLOCK - 1) / BLOCK, all.ns(), [&](long block) {
        all.forward(block * BLOCK, least(BLOCK, all.rows - block * BLOCK));
    });
}

void mwuf_unit_back(const Unit* unit) {
    const ActivationUnit all(*unit);
    const long n = all.rows, units = all.units;
    PartialSums sums(spans_of(n));
    for (float* to : {all.d_event_weight, all.d_product_weight, all.d_item_weight}) sums.add(to, all.dim, units, units);
    for (float* to : {all.d_bias, all.d_relevance}) sums.add(to, units);
    sums.add(all.d_numbers, 2);
    const long events = all.d_events ? all.starts[n] : 0;
    float* d_all = workspace<Kept::ForTheCall>(sums.floats() + events * all.dim);
    sums.use(d_all + events * all.dim);
    in_parallel(spans_of(n), 2.5 * all.ns(), [&](long span) {
        float* own = sums.clear(span);
        const long stop = least((span + 1) * span_rows(n), n);
        for (long start = span * span_rows(n); start < stop; start += BLOCK)
            all.back(start, least(BLOCK, stop - start), d_all, own);
    });
    add_up({&sums});
    if (!all.d_events) return;
    std::vector<int64_t> named(events);
    for (long row = 0; row < n; row++) std::copy_n(all.named(row), all.length(row), named.begin() + all.starts[row]);
    Segments of_events;
    of_events.sort(named.data(), events, all.distinct);
    in_parallel(all.distinct, double(events) * double(all.dim) / V, [&](long event) {
        float* to = all.d_events + event * all.dim;
        std::memset(to, 0, all.dim * sizeof(float));
        of_events.for_each(event, [&](long place) { add_to(to, d_all + place * all.dim, all.dim); });
    });
}

}  // extern "C"
