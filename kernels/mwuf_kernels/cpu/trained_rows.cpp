// Rows of a batch through a head in training, forward (trained_pass.h) and back: see trained_rows.py.

#include <optional>

#include "segments.h"
#include "trained_pass.h"

namespace {

// The backward of a pass: each span of rows has sums of its own.
struct Backward {
    const Pass pass;
    const float* d_logit;
    const Trained& net = pass.net;
    const Layer* layers = pass.layers;
    const Side* sides = pass.sides;
    const long hidden = pass.hidden, each = span_rows(net.n);
    const bool of_weights = pass.of_weights;
    PartialSums of_rows{spans_of(net.n)};
    std::vector<PartialSums> of_sides;  // of those with an index, over their own rows
    std::vector<long> weight_at, bias_at, side_at, linear_at;
    long out_at = 0, pairs_at = 0;
    std::vector<float*> d_fields;  // where pairs send to, by side: of one with an index [n, width], else its d_x
    std::vector<double> d_bias;
    std::vector<float*> d;  // of layers' outputs, then of their products [n, out]; without a norm of the first layer only
    std::vector<Segments> segments;
    Lists side_spans;

    Backward(const Pass& of, const float* d_logit) : pass(of), d_logit(d_logit) {
        long size = 0, depth = net.depth;
        weight_at.resize(depth), bias_at.resize(depth), d.resize(depth, nullptr);
        side_at.resize(net.num_sides), linear_at.resize(net.num_sides), segments.resize(net.num_sides);
        for (long l = 0; l < depth; l++) {
            const Layer& layer = layers[l];
            if (l) weight_at[l] = of_rows.add(layer.d_weight, layer.out, layer.in, layer.in);
            bias_at[l] = of_rows.add(layer.d_bias, layer.out);
            if (!l || pass.has_norm) size += net.n * layer.out;
        }
        if (depth) out_at = of_rows.add(net.d_out, layers[depth - 1].out);
        for (long s = 0; s < net.num_sides; s++) {
            const Side& side = sides[s];
            of_sides.emplace_back(side.index ? spans_of(side.rows) : 0);
            PartialSums& sums = side.index ? of_sides.back() : of_rows;
            float* d_weight = of_weights && depth ? layers[0].d_weight + side.column : nullptr;
            side_at[s] = sums.add(d_weight, hidden, side.width, depth ? layers[0].in : 0);
            linear_at[s] = sums.add(net.linear ? net.d_linear + side.column : nullptr, side.width);
            side_spans.add(side.index ? spans_of(side.rows) : 0);
            size += of_sides.back().floats();
            if (side.index && net.num_pairs) size += net.n * side.width;
        }
        const long before_pairs = depth ? layers[0].in - net.num_pairs : 0;
        if (net.num_pairs) pairs_at = of_rows.add(layers[0].d_weight + before_pairs, hidden, net.num_pairs, layers[0].in);
        d_bias.resize(spans_of(net.n), 0.0);
        float* free = workspace<Kept::ForTheCall>(size + of_rows.floats());
        for (long l = 0; l < (pass.has_norm ? depth : least(depth, 1)); l++) {
            d[l] = free;
            free += net.n * layers[l].out;
        }
        of_rows.use(free);
        free += of_rows.floats();
        for (PartialSums& sums : of_sides) {
            sums.use(free);
            free += sums.floats();
        }
        d_fields.resize(net.num_sides, nullptr);
        for (long s = 0; net.num_pairs && s < net.num_sides; s++) {
            d_fields[s] = sides[s].index ? free : sides[s].d_x;
            if (sides[s].index) free += net.n * sides[s].width;
        }
    }

    void run() {
        const double ns = 2 * pass.ns(double(net.n));
        if (pass.has_norm)
            through_norms(ns);
        else
            first_region(ns, [&](long span, long start, long rows) { through_all(of_rows.at(span), start, rows); });
        double total = 0;
        for (double of_span : d_bias) total += of_span;
        if (of_weights) *net.d_bias = float(total);
        in_parallel(side_spans.size(), ns, [&](long task) {
            const auto [s, span] = side_spans.of(task);
            through_side(s, span);
        });
        std::vector<const PartialSums*> all{&of_rows};
        for (const PartialSums& sums : of_sides) all.push_back(&sums);
        add_up(all);
    }

    // The first loop over spans: it clears their sums, and finds the places of each row of a side in tasks of their own.
    template <typename Body>
    void first_region(double ns, Body&& body) {
        in_parallel(net.num_sides + spans_of(net.n), ns, [&](long task) {
            const long span = task - net.num_sides;
            if (span < 0) {
                if (sides[task].index) segments[task].sort(sides[task].index, net.n, sides[task].rows);
                return;
            }
            of_rows.clear(span);
            const long stop = least(span * each + each, net.n);
            for (long r = span * each; r < stop; r++) d_bias[span] += double(d_logit[r]);
            Pass::by_blocks(span * each, stop, [&](long start, long rows) { body(span, start, rows); });
        });
    }

    // A block through all layers, without a norm.
    void through_all(float* sums, long start, long rows) {
        long widest = 1;
        for (long l = 1; l < net.depth; l++) widest = layers[l].out > widest ? layers[l].out : widest;
        float* before = workspace<Kept::ForTheTask>(2 * BLOCK * widest);
        float* here = before + BLOCK * widest;
        for (long l = net.depth - 1; l >= 0; l--) {
            float* of_layer = l ? here : d[0] + start * hidden;
            if (l == net.depth - 1) output_back(start, rows, of_layer, sums + out_at);
            pass.activation_back(layers[l], start, rows, of_layer, nullptr);
            for (long r = 0; of_weights && r < rows; r++)
                add_to(sums + bias_at[l], of_layer + r * layers[l].out, layers[l].out);
            if (!l) break;
            float* next = l == 1 ? d[0] + start * hidden : before;
            linear_back(l, start, rows, of_layer, next, sums + weight_at[l]);
            std::swap(before, here);
        }
        first_back(sums, start, rows);
    }

    // Layers with norms: a norm needs the whole batch. From one to what the next one gives, a block stays in the cache.
    void through_norms(double ns) {
        std::optional<NormBack> norm;  // above
        for (long l = net.depth - 1; l >= -1; l--) {
            Moments moments(l < 0 ? 0 : spans_of(net.n), l < 0 ? 0 : 2 * layers[l].out);
            const auto body = [&](long span, long start, long rows) {
                float* sums = of_rows.at(span);
                if (norm) {
                    const Layer& layer = layers[l + 1];
                    float* of_block = d[l + 1] + start * layer.out;
                    for (long r = 0; r < rows; r++)
                        (*norm)(layer.z + (start + r) * layer.out, of_block + r * layer.out);
                    if (l < 0) return first_back(sums, start, rows);
                    linear_back(l + 1, start, rows, of_block, d[l] + start * layer.in, sums + weight_at[l + 1]);
                } else {
                    output_back(start, rows, d[l] + start * layers[l].out, sums + out_at);
                }
                pass.activation_back(layers[l], start, rows, d[l] + start * layers[l].out, moments.at(span));
            };
            norm ? pass.by_spans(ns / double(net.depth), body) : first_region(ns / double(net.depth), body);
            if (l >= 0) norm.emplace(layers[l], moments, net.n, net.sum_over_ranks);
        }
    }

    void output_back(long start, long rows, float* of_block, float* d_out) const {
        const Layer& last = layers[net.depth - 1];
        for (long r = 0; r < rows; r++) {
            times(of_block + r * last.out, d_logit[start + r], net.out, last.out);
            if (of_weights) add_times(d_out, d_logit[start + r], last.a + (start + r) * last.out, last.out);
        }
    }

    void linear_back(long l, long start, long rows, const float* of_block, float* d_before, float* d_weight) const {
        const Layer& layer = layers[l];
        if (of_weights)
            product<Then::Nothing>(layer.out, layer.in, rows, {of_block, 1, layer.out},
                                   {layers[l - 1].a + start * layer.in, layer.in, 1}, {d_weight, layer.in, 1}, NONE,
                                   d_weight, layer.in);
        product<Then::Nothing>(rows, layer.in, layer.out, {of_block, layer.out, 1}, {layer.weight, layer.in, 1}, NONE,
                               NONE, d_before, layer.in);
    }

    // Sides without an index: each row of the batch has its own.
    void first_back(float* sums, long start, long rows) const {
        float* d_total = workspace<Kept::ForMoments>(BLOCK * net.dim);
        if (net.interactions)
            for (long r = 0; r < rows; r++)
                times(d_total + r * net.dim, d_logit[start + r], net.total + (start + r) * net.dim, net.dim);
        const float* of_layer = net.depth ? d[0] + start * hidden : nullptr;
        for (long s = 0; s < net.num_sides; s++)
            if (!sides[s].index)
                pass.side_back(sides[s], start, rows, of_layer, d_logit + start, d_total, sums + side_at[s],
                               sums + linear_at[s]);
        if (net.num_pairs) pairs_back(start, rows, of_layer, sums + pairs_at);
    }

    // After the sides without an index, whose gradients it adds to.
    void pairs_back(long start, long rows, const float* of_layer, float* d_weight) const {
        const long num = net.num_pairs, num_fields = long(pass.fields.size()), dim = net.dim;
        const float* pairs = net.pairs + start * num;
        float* d_pairs = workspace<Kept::ForMoments>(BLOCK * num + num_fields * (num_fields + dim));
        float *matrix = d_pairs + BLOCK * num, *d_row = matrix + num_fields * num_fields;
        product<Then::Nothing>(rows, num, hidden, {of_layer, hidden, 1},
                               {layers[0].weight + layers[0].in - num, layers[0].in, 1}, NONE, NONE, d_pairs, num);
        product<Then::Nothing>(hidden, num, rows, {of_layer, 1, hidden}, {pairs, num, 1}, {d_weight, num, 1}, NONE,
                               d_weight, num);
        std::vector<const float*> at(num_fields);
        std::fill(matrix, d_row, 0.0f);  // its diagonal stays so
        for (long r = 0; r < rows; r++) {
            pass.find_fields(start + r, at.data());
            pass.pairs_back(d_pairs + r * num, at, matrix, d_row);
            for (long f = 0; f < num_fields; f++) {
                const FieldOfSide& field = pass.fields[f];
                const Side& side = sides[field.side];
                float* out = d_fields[field.side] + (start + r) * side.width + field.column;
                side.index ? copy_of(out, d_row + f * dim, dim) : add_to(out, d_row + f * dim, dim);
            }
        }
    }

    // A span of rows of a side with an index: each gets the sum over the places that it has in the batch.
    void through_side(long s, long span) {
        const Side& side = sides[s];
        const long width = hidden + net.dim + 1, first = span * span_rows(side.rows);
        float *sums = of_sides[s].clear(span), *of_layer = workspace<Kept::ForTheTask>(BLOCK * width);
        float *of_total = of_layer + BLOCK * hidden, *of_constant = of_total + BLOCK * net.dim;
        const float* of_pairs = d_fields[s];
        Pass::by_blocks(first, least(first + span_rows(side.rows), side.rows), [&](long start, long rows) {
            std::memset(of_layer, 0, BLOCK * width * sizeof(float));
            for (long r = 0; r < rows; r++)
                segments[s].for_each(start + r, [&](long row) {
                    of_constant[r] += d_logit[row];
                    if (net.depth) add_to(of_layer + r * hidden, d[0] + row * hidden, hidden);
                    if (net.interactions)
                        add_times(of_total + r * net.dim, d_logit[row], net.total + row * net.dim, net.dim);
                });
            pass.side_back(side, start, rows, of_layer, of_constant, of_total, sums + side_at[s], sums + linear_at[s]);
            for (long r = start; of_pairs && r < start + rows; r++)
                segments[s].for_each(r, [&](long row) {
                    add_to(side.d_x + r * side.width, of_pairs + row * side.width, side.width);
                });
        });
    }
};

}  // namespace

extern "C" {

long mwuf_size_of_side() { return sizeof(Side); }
long mwuf_size_of_layer() { return sizeof(Layer); }
long mwuf_size_of_trained() { return sizeof(Trained); }

void mwuf_trained_forward(const Trained* net, const Side* sides, const Layer* layers, float* logit) {
    Pass{*net, sides, layers}.forward(logit);
}

void mwuf_trained_backward(const Trained* net, const Side* sides, const Layer* layers, const float* d_logit) {
    Backward(Pass{*net, sides, layers}, d_logit).run();
}

}  // extern "C"
