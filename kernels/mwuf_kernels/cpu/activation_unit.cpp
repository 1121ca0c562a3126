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
            copy_of(folded + i * units, of_event() + i * units, units);
            add_times(folded + i * units, item[row * dim + i], of_product() + i * units, units);
        }
        product<Then::Nothing>(length(row), units, dim, {of_row, dim, 1}, {folded, units, 1}, {share, 0, 1}, NONE, sums,
                               units);
    }

    Vec activated(Vec x) const { return x > 0 ? x : slope * x; }

    void forward(long start, long number) const {
        float* share = workspace<Kept::ForTheTask>((BLOCK + dim + longest) * units + longest * dim);
        float *folded = share + BLOCK * units, *sums = folded + dim * units, *of_row = sums + longest * units;
        shares(start, number, share);
        for (long row = start; row < start + number; row++) {
            gather(row, of_row);
            before(row, of_row, share + (row - start) * units, folded, sums);
            float* to = out + row * dim;
            std::memset(to, 0, dim * sizeof(float));
            for (long j = 0; j < length(row); j++) {
                Vec weight{};
                for (long u = 0; u < units; u += V) weight += activated(load(sums + j * units + u)) * load(relevance + u);
                add_times(to, constant + sum_of_lanes(weight), of_row + j * dim, dim);
            }
        }
    }

    // Of an event whose weight has the gradient d_weight: x becomes the gradient of the units before the PReLU. Returns
    // the weight, and the gradient of the PReLU's slope.
    std::pair<float, float> back_through(float* x, float d_weight, float* of_relevance) const {
        Vec weight{}, of_slope{};
        for (long u = 0; u < units; u += V) {
            const Vec of = load(x + u), active = activated(of), d = d_weight * load(relevance + u);
            weight += active * load(relevance + u);
            of_slope += of > 0 ? Vec{} : d * of;
            store(x + u, of > 0 ? d : slope * d);
            if (of_relevance) store(of_relevance + u, load(of_relevance + u) + d_weight * active);
        }
        return {sum_of_lanes(weight), sum_of_lanes(of_slope)};
    }

    // Into d_all [all rows' events, dim] those of events, where they are asked for.
    // Adds to a span's own gradients: of the weights [3][dim, units], the bias, the relevance and the two numbers.
    void back(long start, long number, float* d_all, float* own) const {
        float* share = workspace<Kept::ForTheTask>((2 * BLOCK + 3 * dim + longest) * units + longest * dim);
        float *d_share = share + BLOCK * units, *folded = d_share + BLOCK * units, *sums = folded + dim * units;
        float *d_folded = sums + longest * units, *folded_turned = d_folded + dim * units;
        float* of_row = folded_turned + dim * units;
        const bool of_weights = d_bias != nullptr;
        float *of_bias = own + 3 * dim * units, *of_relevance = of_weights ? of_bias + units : nullptr;
        shares(start, number, share);
        std::memset(d_share, 0, number * units * sizeof(float));
        for (long row = start; row < start + number; row++) {
            const float *d = d_out + row * dim, *v = item + row * dim;
            const long length = this->length(row);
            float* d_own = d_share + (row - start) * units;
            gather(row, of_row);
            before(row, of_row, share + (row - start) * units, folded, sums);
            for (long j = 0; j < length; j++) {
                float* x = sums + j * units;
                const float d_weight = dot(d, of_row + j * dim, dim);
                const auto [weight, of_slope] = back_through(x, d_weight, of_relevance);
                add_to(d_own, x, units);
                if (of_weights) of_relevance[units] += of_slope, of_relevance[units + 1] += d_weight;
                if (d_events) times(d_all + (starts[row] + j) * dim, constant + weight, d, dim);
            }
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
