// Rows of a batch through a frozen head: see frozen_rows.py.

#include "frozen_powers.h"
#include "pool.h"
#include "segments.h"

namespace {

// A head whose first layer is linear in the fields, and in the products of pairs of them.
struct FieldRows : Rows {
    // Rows from block * BLOCK on: their weighted cross entropies are added to loss [passes], where there are labels, and
    // the gradients in their item embeddings go to d_rows [passes, n, dim].
    void block(long number, double* loss, float* d_rows) const {
        const long dim = head->dim, wide = head->padded_inputs, hidden = head->hidden, depth = head->depth;
        const long num_crossed = head->item_fields * head->user_fields;
        const long kept = (head->item_fields + head->user_fields) * dim;  // the fields of a row
        const long constant = hidden + kept + (head->interactions ? dim : 0);
        const long start = number * BLOCK, rows = least(BLOCK, n - start);
        const long widest = this->widest(), all = all_widths(), last = last_width();
        const long first_width = depth ? head->widths[0] : 0;
        const long size = BLOCK * (first_width + 3 * wide + all + 2 * widest + kept + num_crossed) + 5 * BLOCK;
        float* base = workspace<Kept::ForTheTask>(size);  // the parts' share of the first layer [BLOCK, first_width]
        float* total = base + BLOCK * first_width;  // the sum of the other fields' embeddings [BLOCK, wide]
        float* item = total + BLOCK * wide;
        // What is behind the last row, and behind the last column, is zero.
        if (rows < BLOCK || first_width > hidden)
            std::memset(base, 0, size * sizeof(float));
        else if (wide > dim)
            std::memset(total, 0, 2 * BLOCK * wide * sizeof(float));
        float* d_item = item + BLOCK * wide;
        float* states = d_item + BLOCK * wide;
        float* d = states + BLOCK * all;
        float* d_next = d + BLOCK * widest;
        float* plain = d_next + BLOCK * widest;  // what of a logit is of the parts alone
        float* logit = plain + BLOCK;
        float* slope = logit + BLOCK;
        float* label = slope + BLOCK;
        float* weight = label + BLOCK;
        float* fields = weight + BLOCK;  // [BLOCK, kept]
        float* crossed = fields + BLOCK * kept;
        for (long r = 0; r < rows; r++) {
            const float* a = parts + (first ? first[start + r] : start + r) * parts_step;
            float* of_layer = base + r * first_width;
            float* of_total = total + r * wide;
            const float* b = second ? parts + second[start + r] * parts_step : nullptr;
            if (items || kept)
                sum_of(of_layer, a, b, hidden);
            else
                relu_of_sum(states + r * first_width, a, b, hidden);
            plain[r] = a[constant] + (b ? b[constant] : 0);
            if (head->interactions) {
                sum_of(of_total, a + hidden, b ? b + hidden : nullptr, dim);
                plain[r] += 0.5f * dot(of_total, of_total, wide);
            }
            if (kept) {
                float* of_row = fields + r * kept;
                sum_of(of_row, a + hidden, b ? b + hidden : nullptr, kept);
                for (long i = 0; i < num_crossed; i++)
                    crossed[r * num_crossed + i] = dot(of_row + i / head->user_fields * dim,
                                                       of_row + (head->item_fields + i % head->user_fields) * dim, dim);
            }
            if (!items) continue;
            // The slope in the item, from here on.
            if (head->interactions)
                add_to(of_total, head->linear, dim);
            else
                copy_of(of_total, head->linear, dim);
        }
        const Matrix of_crossed{crossed, num_crossed, 1}, by_crossed{head->crossed, first_width, 1};
        if (kept && items)
            product<Then::Nothing>(BLOCK, first_width, num_crossed, of_crossed, by_crossed, {base, first_width, 1}, NONE,
                                   base, first_width);
        else if (kept)
            product<Then::Relu>(BLOCK, first_width, num_crossed, of_crossed, by_crossed, {base, first_width, 1}, NONE,
                                states, first_width);
        for (long pass = 0; pass < passes; pass++) {
            if (items)
                for (long r = 0; r < rows; r++) {
                    float* of_row = item + r * wide;
                    copy_of(of_row, items + (pass * item_rows + index[start + r]) * dim, dim);
                    // With every field but the first, which is its own place.
                    for (long i = dim; i < head->inputs; i++)
                        of_row[i] = dot(of_row, fields + r * kept + (i - dim + 1) * dim, dim);
                }
            float* x = states;
            if (depth && items)
                product<Then::Relu>(BLOCK, first_width, head->inputs, {item, wide, 1}, {head->weights[0], first_width, 1},
                                    {base, first_width, 1}, NONE, x, first_width);
            x = through_layers(x);
            for (long r = 0; r < rows; r++) {
                logit[r] = plain[r] + dot(x + r * last, head->out, last);
                if (items) logit[r] += dot(item + r * wide, total + r * wide, wide);
            }
            if (logits) std::memcpy(logits + pass * n + start, logit, rows * sizeof(float));
            if (!labels) continue;
            slopes(start, rows, logit, label, weight, slope, loss + pass);
            if (!d_rows) continue;
            for (long r = 0; r < BLOCK; r++) times(d_item + r * wide, slope[r], total + r * wide, wide);
            const float* d_first = back_through_layers(x, slope, d, d_next);
            if (depth)
                product<Then::Nothing>(BLOCK, wide, first_width, {d_first, first_width, 1}, {head->transposed[0], wide, 1},
                                       {d_item, wide, 1}, NONE, d_item, wide);
            for (long r = 0; r < rows; r++) {
                float *of_row = d_rows + (pass * n + start + r) * dim, *d_inputs = d_item + r * wide;
                copy_of(of_row, d_inputs, dim);
                for (long i = dim; i < head->inputs; i++)
                    add_times(of_row, d_inputs[i], fields + r * kept + (i - dim + 1) * dim, dim);
            }
        }
    }
};

template <typename Some>
void in_blocks(const Some& rows, double* loss, float* d_items) {
    const long n = rows.n, passes = rows.passes, item_rows = rows.item_rows, blocks = (n + BLOCK - 1) / BLOCK;
    const long dim = rows.head->dim;
    const double ns = rows.ns();
    if (!rows.labels) return in_parallel(blocks, ns, [&](long block) { rows.block(block, nullptr, nullptr); });
    std::vector<double> losses(blocks * passes, 0.0);
    float* d_rows = workspace<Kept::ForTheCall>(d_items ? passes * n * dim : 0);
    Segments segments;
    // The sort is a task of its own, and the first to be claimed.
    in_parallel(blocks + 1, ns, [&](long task) {
        if (task)
            rows.block(task - 1, losses.data() + (task - 1) * passes, d_items ? d_rows : nullptr);
        else if (d_items)
            segments.sort(rows.index, n, item_rows);
    });
    for (long block = 0; block < blocks; block++)
        for (long pass = 0; pass < passes; pass++) loss[pass] += losses[block * passes + pass];
    if (!d_items) return;
    // Of each item, its rows one after another.
    const long spans = spans_of(item_rows), each = span_rows(item_rows);
    in_parallel(spans * passes, double(passes * n) * (5 + 2.0 * dim / V), [&](long task) {
        const long pass = task / spans, begin = task % spans * each;
        for (long item = begin; item < least(begin + each, item_rows); item++)
            segments.for_each(item, [&](long row) {
                add_to(d_items + (pass * item_rows + item) * dim, d_rows + (pass * n + row) * dim, dim);
            });
    });
}

}  // namespace

extern "C" {

long mwuf_size_of_head() { return sizeof(Head); }

// Logits of rows, and with labels the loss and its gradient in the item embeddings.
//   parts [., parts_step]: row i has the sum of rows first[i] and second[i] (null: row i, and nothing).
//   items [passes, ., dim]: row i has row index[i] in each pass; a pass is item_rows rows long. Null: parts are all.
//   loss [passes] sums weight * cross entropy; d_items, laid out as items, has scale * its gradient added to it.
//   logits [passes, n] are written where they are asked for.
void mwuf_head(const Head* head, long n, const float* parts, long parts_step, const int64_t* first,
               const int64_t* second, long passes, const float* items, long item_rows, const int64_t* index,
               const float* labels, const float* weights, float scale, double* loss, float* d_items, float* logits) {
    const Rows rows{head, n, parts, parts_step, first, second, passes, items, item_rows, index, labels, weights, scale, logits};
    head->neurons ? in_blocks(PowerRows{rows}, loss, d_items) : in_blocks(FieldRows{rows}, loss, d_items);
}

}  // extern "C"
