// The compiled loops against the plainest loops in double, as a program without Python or torch: so it runs where those
// are not at hand, under qemu-user for another processor. tests/kernels/test_native_checks.py builds it for this one,
// tools/play_processors.py for aarch64. Prints what it has checked; exit code 1 and a line for each thing that is wrong.

#include "dropout_noise.cpp"
#include "native_draws.h"
#include "native_histories.h"
#include "native_powers.h"
#include "networks.cpp"
#include "pair_products.cpp"
#include "pool.cpp"
#include "table_rows.cpp"
#include "trained_rows.cpp"

namespace {

void check_products() {
    for (long m : {1, 4, 5, 8, 13, 20, 48})
        for (long n : {1, 7, 12, 16, 24, 33, 48, 64})
            for (long k : {1, 9, 64}) {
                const Floats a = draws(m * k), b = draws(k * n), from = draws(m * n), mask = draws(m * n);
                Doubles plain(m * n), relu(m * n), back(m * n);
                for (long r = 0; r < m; r++)
                    for (long c = 0; c < n; c++) {
                        double sum = from[r * n + c];
                        for (long p = 0; p < k; p++) sum += double(a[r * k + p]) * b[p * n + c];
                        plain[r * n + c] = sum;
                        relu[r * n + c] = sum < 0 ? 0 : sum;
                        back[r * n + c] = mask[r * n + c] <= 0 ? 0 : sum;
                    }
                double largest = 0;
                for (double x : plain) largest = std::fmax(largest, std::fabs(x));
                Floats found(m * n);
                const Matrix of_a{a.data(), k, 1}, of_b{b.data(), n, 1}, of_from{from.data(), n, 1};
                const std::string size = std::to_string(m) + " x " + std::to_string(k) + " x " + std::to_string(n);
                product<Then::Nothing>(m, n, k, of_a, of_b, of_from, NONE, found.data(), n);
                same("product " + size, found, plain, k + 1);
                product<Then::Relu>(m, n, k, of_a, of_b, of_from, NONE, found.data(), n);
                same("product with ReLU " + size, found, relu, k + 1, largest);
                product<Then::ReluBack>(m, n, k, of_a, of_b, of_from, {mask.data(), n, 1}, found.data(), n);
                same("product back through a ReLU " + size, found, back, k + 1, largest);
            }
}

void check_pair_products(long dim) {
    const long rows = 50, num = 5, num_pairs = 10;
    const Floats fields = draws(rows * num * dim), d_out = draws(rows * num_pairs);
    Doubles out, d_fields(fields.size(), 0.0);
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < num; i++)
            for (long j = i + 1; j < num; j++) {
                const double d = d_out[out.size()];
                double sum = 0;
                for (long c = 0; c < dim; c++) {
                    const long a = (row * num + i) * dim + c, b = (row * num + j) * dim + c;
                    sum += double(fields[a]) * fields[b];
                    d_fields[a] += d * fields[b], d_fields[b] += d * fields[a];
                }
                out.push_back(sum);
            }
    Floats found(out.size()), d_found(fields.size());
    mwuf_pair_products(rows, num, dim, fields.data(), found.data());
    mwuf_pair_products_back(rows, num, dim, fields.data(), d_out.data(), d_found.data());
    same("products of pairs", found, out, dim);
    same("products of pairs, d fields", d_found, d_fields, num);
}

void check_dropout_noise(long skipped, long n) {
    u128 state = joined(3, -5);
    const u128 increment = joined(7, 11);
    Doubles expected(n);
    for (long unit = 0; unit < skipped + n; unit += UNITS) {
        const uint64_t four = draw(state, increment);
        for (long u = unit; u < unit + UNITS; u++)
            if (u >= skipped && u < skipped + n) expected[u - skipped] = int16_t(four >> 16 * (u - unit)) < 9000 ? 1.5 : 0;
    }
    Floats found(n);
    mwuf_dropout_noise(3, -5, 7, 11, skipped, n, 9000, 1.5f, found.data());
    same("dropout noise of " + std::to_string(n), found, expected, 1);
}

void check_network(long n, long inputs, long hidden, long dim) {
    const Floats x = draws(n * inputs), w1 = draws(hidden * inputs), b1 = draws(hidden), w2 = draws(dim * hidden);
    const Floats b2 = draws(dim), d_out = draws(n * dim);
    Floats state(n * hidden), out(n * dim), d_hidden(n * hidden);
    mwuf_network(n, inputs, hidden, dim, x.data(), w1.data(), b1.data(), w2.data(), b2.data(), 1, state.data(), out.data());
    Doubles of_hidden(n * hidden), of_out(n * dim), e_w1(hidden * inputs), e_b1(hidden), e_w2(dim * hidden), e_b2(dim);
    for (long r = 0; r < n; r++) {
        for (long h = 0; h < hidden; h++) {
            double sum = b1[h];
            for (long i = 0; i < inputs; i++) sum += double(x[r * inputs + i]) * w1[h * inputs + i];
            of_hidden[r * hidden + h] = sum < 0 ? 0 : sum;
        }
        for (long d = 0; d < dim; d++) {
            double sum = b2[d] + 1.0;
            for (long h = 0; h < hidden; h++) sum += of_hidden[r * hidden + h] * w2[d * hidden + h];
            of_out[r * dim + d] = sum;
            e_b2[d] += d_out[r * dim + d];
            for (long h = 0; h < hidden; h++) e_w2[d * hidden + h] += d_out[r * dim + d] * of_hidden[r * hidden + h];
        }
        for (long h = 0; h < hidden; h++) {
            double slope = 0;
            for (long d = 0; d < dim; d++) slope += double(d_out[r * dim + d]) * w2[d * hidden + h];
            if (of_hidden[r * hidden + h] <= 0) slope = 0;
            e_b1[h] += slope;
            for (long i = 0; i < inputs; i++) e_w1[h * inputs + i] += slope * x[r * inputs + i];
        }
    }
    const long terms = inputs + hidden;
    same("network", out, of_out, terms);
    Floats d_w1(hidden * inputs), d_b1(hidden), d_w2(dim * hidden), d_b2(dim);
    mwuf_network_back(n, inputs, hidden, dim, x.data(), w2.data(), state.data(), d_out.data(), d_hidden.data(),
                      d_w1.data(), d_b1.data(), d_w2.data(), d_b2.data());
    same("network: d w1", d_w1, e_w1, terms + dim + n);
    same("network: d b1", d_b1, e_b1, terms + dim + n);
    same("network: d w2", d_w2, e_w2, terms + dim + n);
    same("network: d b2", d_b2, e_b2, n);
}

void check_tables(long dim) {
    const long fields = 3, entities = 11, rows = 20, n = 50;
    Ids lengths(entities * fields), starts(entities), ids;
    for (long e = 0; e < entities; e++) {
        starts[e] = int64_t(ids.size());
        for (long f = 0; f < fields; f++) {
            lengths[e * fields + f] = (e + f) % 4;  // none, too
            for (int64_t id : draw_ids((e + f) % 4, rows)) ids.push_back(id);
        }
    }
    const Floats table = draws(rows * dim), d_out = draws(n * fields * dim);
    const Ids chosen = draw_ids(n, entities);
    for (long mean : {0, 1}) {
        Doubles expected(n * fields * dim), slope(rows * dim);
        for (long i = 0; i < n; i++) {
            long at = starts[chosen[i]];
            for (long f = 0; f < fields; f++) {
                const long length = lengths[chosen[i] * fields + f];
                for (long k = 0; k < length; k++, at++)
                    for (long c = 0; c < dim; c++) {
                        const double by = mean ? 1.0 / double(length) : 1.0;
                        expected[(i * fields + f) * dim + c] += by * table[ids[at] * dim + c];
                        slope[ids[at] * dim + c] += by * d_out[(i * fields + f) * dim + c];
                    }
            }
        }
        Floats found(n * fields * dim, 9), gradient(rows * dim);
        mwuf_table_rows(n, dim, fields, 0, mean, table.data(), ids.data(), lengths.data(), starts.data(), chosen.data(),
                        found.data());
        same("rows of tables", found, expected, 4);
        mwuf_add_table_rows(n, dim, fields, 0, mean, gradient.data(), ids.data(), lengths.data(), starts.data(),
                            chosen.data(), d_out.data());
        same("rows of tables, back", gradient, slope, n);
    }
    const Ids users = draw_ids(n, rows);
    std::vector<int32_t> place(rows);
    Ids values(rows), inverse(n);
    int64_t count = 0;
    mwuf_distinct(n, rows, users.data(), place.data(), values.data(), inverse.data(), &count);
    Doubles through(users.begin(), users.end());
    Ids back(n);
    for (long i = 0; i < n; i++) back[i] = values[inverse[i]];
    same("distinct ids", back, through, 0);
    for (long i = 1; i < count; i++) same("order of distinct ids", Ids{values[i] > values[i - 1]}, {1}, 0);
}

// A frozen head with hidden widths 32 and 16, whose parts hold a sum of fields, or fields of which pairs are multiplied.
enum class Holds { Nothing, Sum, Fields };
void check_head(long n, long dim, Holds holds) {
    const bool interactions = holds == Holds::Sum;
    const long of_item = holds == Holds::Fields ? 3 : 0, of_user = holds == Holds::Fields ? 2 : 0, fields = of_item + of_user;
    const long inputs = dim + (fields ? fields - 1 : 0);
    const long h = 32, g = 16, items = 9, parts = 20, padded = (inputs + 15) / 16 * 16;
    const long constant = h + (interactions ? dim : fields * dim), step = constant + 3;
    const Floats w1 = draws(inputs * h, 0.5), crossed = draws(of_item * of_user * h, 0.5), w2 = draws(h * g, 0.5), b2 = draws(g), out = draws(g), linear = draws(dim);
    const Floats part = draws(parts * step), item = draws(items * dim), label = draws(n), weight = draws(n);
    const Ids first = draw_ids(n, parts), second = draw_ids(n, parts), index = draw_ids(n, items);
    Floats labels(n), weights(n), padded_w1(padded * h), w1_t(h * padded), w2_t(g * h), padded_linear(padded);
    for (long r = 0; r < n; r++) labels[r] = label[r] > 0, weights[r] = std::fabs(weight[r]);
    for (long i = 0; i < dim; i++) padded_linear[i] = linear[i];
    for (long i = 0; i < inputs; i++) {
        for (long j = 0; j < h; j++) padded_w1[i * h + j] = w1_t[j * padded + i] = w1[i * h + j];
    }
    for (long i = 0; i < h; i++)
        for (long j = 0; j < g; j++) w2_t[j * h + i] = w2[i * g + j];
    Doubles v = wide(item);
    Doubles logit(n);
    const auto loss = [&]() {
        double sum = 0;
        for (long r = 0; r < n; r++) {
            const float *a = part.data() + first[r] * step, *b = part.data() + second[r] * step;
            const double* x = v.data() + index[r] * dim;
            logit[r] = double(a[constant]) + b[constant];
            for (long i = 0; i < dim; i++) {
                const double total = interactions ? double(a[h + i]) + b[h + i] : 0;
                logit[r] += 0.5 * total * total + (linear[i] + total) * x[i];
            }
            double layer[32];
            for (long j = 0; j < h; j++) {
                layer[j] = double(a[j]) + b[j];
                for (long i = 0; i < dim; i++) layer[j] += w1[i * h + j] * x[i];
                const auto field = [&](long f, long i) { return double(a[h + f * dim + i]) + b[h + f * dim + i]; };
                for (long i = 0; i < dim; i++) {
                    for (long f = 1; f < fields; f++) layer[j] += w1[(dim + f - 1) * h + j] * x[i] * field(f, i);
                    for (long p = 0; p < of_item * of_user; p++)
                        layer[j] += crossed[p * h + j] * field(p / of_user, i) * field(of_item + p % of_user, i);
                }
                layer[j] = std::fmax(layer[j], 0);
            }
            for (long k = 0; k < g; k++) {
                double unit = b2[k];
                for (long j = 0; j < h; j++) unit += layer[j] * w2[j * g + k];
                logit[r] += out[k] * std::fmax(unit, 0);
            }
            sum += weights[r] * cross_entropy(logit[r], labels[r]);
        }
        return sum;
    };
    const Doubles slope = slopes(v, loss), total{loss()};
    const long widths[] = {h, g};
    const float *forward[] = {padded_w1.data(), w2.data()}, *backward[] = {w1_t.data(), w2_t.data()};
    const float* biases[] = {nullptr, b2.data()};
    const Head head{dim,     inputs,   padded, h,          interactions,         2,             of_item, of_user, 0,
                    0,       0,        widths, forward,    backward,             biases,        out.data(),
                    padded_linear.data(), crossed.data(), nullptr, nullptr};
    Floats logits(n), d_items(items * dim);
    Doubles sum(1);
    mwuf_head(&head, n, part.data(), step, first.data(), second.data(), 1, item.data(), items, index.data(), labels.data(),
              weights.data(), 1, sum.data(), d_items.data(), logits.data());
    const long terms = 2 * dim + h + g + fields * (1 + dim);
    same("head: logits", logits, logit, terms);
    same("head: loss", sum, total, terms);
    same("head: gradient", d_items, slope, 2 * terms + n);
}

// A head in training: two sides, one with rows that several rows of the batch have; two layers, and the sum of fields, or
// without a linear part the products of their pairs.
void check_trained(bool norm, bool dropout, bool pairs) {
    const long n = 61, dim = 4, fields = 3, before = fields * dim, num_pairs = pairs ? 3 : 0, in = before + num_pairs, h = 20, g = 8, shared = 7;
    Doubles x0 = wide(draws(shared * 2 * dim)), x1 = wide(draws(n * dim)), w0 = wide(draws(h * in, 0.5));
    Doubles w1 = wide(draws(g * h, 0.5)), c0 = wide(draws(h)), c1 = wide(draws(g)), s0 = wide(draws(h)), s1 = wide(draws(g));
    Doubles linear = wide(draws(before)), out = wide(draws(g)), bias = wide(draws(2));
    const Floats d_logit = draws(n);
    const Ids index = draw_ids(n, shared);
    Floats noise0(n * h, 1), noise1(n * g, 1);
    if (dropout) {
        for (float& one : noise0) one = uniform() < 0.2 ? 0 : 1.25f;
        for (float& one : noise1) one = uniform() < 0.2 ? 0 : 1.25f;
    }
    const double eps = 1e-5;
    Doubles logit(n), mean0, var0, mean1, var1;
    const auto layer = [&](const Doubles& x, long width, const Doubles& w, const Doubles& beta, const Doubles& gamma,
                           const Floats& noise, long units, Doubles& mean, Doubles& var) {
        Doubles z(n * units);
        mean.assign(units, 0), var.assign(units, 0);
        for (long r = 0; r < n; r++)
            for (long j = 0; j < units; j++) {
                for (long i = 0; i < width; i++) z[r * units + j] += w[j * width + i] * x[r * width + i];
                mean[j] += z[r * units + j] / double(n);
            }
        for (long r = 0; r < n; r++)
            for (long j = 0; j < units; j++) var[j] += std::pow(z[r * units + j] - mean[j], 2) / double(n);
        for (long r = 0; r < n; r++)
            for (long j = 0; j < units; j++) {
                double& one = z[r * units + j];
                one = (norm ? (one - mean[j]) / std::sqrt(var[j] + eps) * gamma[j] : one) + beta[j];
                one = std::fmax(one, 0) * noise[r * units + j];
            }
        return z;
    };
    const auto loss = [&]() {
        Doubles x(n * in);
        for (long r = 0; r < n; r++)
            for (long i = 0; i < before; i++)
                x[r * in + i] = i < 2 * dim ? x0[index[r] * 2 * dim + i] : x1[r * dim + i - 2 * dim];
        for (long r = 0; pairs && r < n; r++) {
            double *row = x.data() + r * in, *product = row + before;
            for (long i = 0; i < fields; i++)
                for (long j = i + 1; j < fields; j++, product++)
                    for (long c = 0; c < dim; c++) *product += row[i * dim + c] * row[j * dim + c];
        }
        const Doubles a = layer(x, in, w0, c0, s0, noise0, h, mean0, var0);
        const Doubles b = layer(a, h, w1, c1, s1, noise1, g, mean1, var1);
        double sum = 0;
        for (long r = 0; r < n; r++) {
            logit[r] = (pairs ? 0 : bias[0]) + bias[1];
            for (long i = 0; !pairs && i < before; i++) logit[r] += linear[i] * x[r * in + i];
            for (long c = 0; !pairs && c < dim; c++) {
                double total = 0, squares = 0;
                for (long f = 0; f < fields; f++) {
                    total += x[r * in + f * dim + c];
                    squares += std::pow(x[r * in + f * dim + c], 2);
                }
                logit[r] += 0.5 * (total * total - squares);
            }
            for (long k = 0; k < g; k++) logit[r] += out[k] * b[r * g + k];
            sum += d_logit[r] * logit[r];
        }
        return sum;
    };
    const auto narrow = [](const Doubles& from) { return Floats(from.begin(), from.end()); };
    const Floats f_x0 = narrow(x0), f_x1 = narrow(x1), f_w0 = narrow(w0), f_w1 = narrow(w1), f_c0 = narrow(c0);
    const Floats f_c1 = narrow(c1), f_s0 = narrow(s0), f_s1 = narrow(s1), f_linear = narrow(linear), f_out = narrow(out);
    const Floats f_bias = narrow(bias);
    Floats run(4 * h), z0(n * h), a0(n * h), z1(n * g), a1(n * g), m0(h), v0(h), m1(g), v1(g), total(n * dim), found(n);
    Floats products(n * num_pairs);
    Floats d_w0(h * in), d_w1(g * h), d_c0(h), d_c1(g), d_s0(h), d_s1(g), d_x0(shared * 2 * dim), d_x1(n * dim);
    Floats d_linear(before), d_out(g), d_bias(1);
    Layer layers[] = {
        {in, h, f_w0.data(), f_c0.data(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, a0.data(), nullptr, nullptr,
         d_w0.data(), d_c0.data(), nullptr, nullptr},
        {h, g, f_w1.data(), f_c1.data(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, a1.data(), nullptr, nullptr,
         d_w1.data(), d_c1.data(), nullptr, nullptr},
    };
    if (norm) {
        layers[0] = {in, h, f_w0.data(), nullptr, f_s0.data(), f_c0.data(), run.data(), run.data() + h, nullptr, z0.data(),
                     a0.data(), m0.data(), v0.data(), d_w0.data(), nullptr, d_s0.data(), d_c0.data()};
        layers[1] = {h, g, f_w1.data(), nullptr, f_s1.data(), f_c1.data(), run.data() + 2 * h, run.data() + 3 * h, nullptr,
                     z1.data(), a1.data(), m1.data(), v1.data(), d_w1.data(), nullptr, d_s1.data(), d_c1.data()};
    }
    if (dropout) layers[0].noise = noise0.data(), layers[1].noise = noise1.data();
    const Side sides[] = {{shared, 2 * dim, 0, f_x0.data(), index.data(), d_x0.data()},
                          {n, dim, 2 * dim, f_x1.data(), nullptr, d_x1.data()}};
    const Trained net{n, dim, !pairs, 2, 2, num_pairs, 0.1f, float(eps), pairs ? nullptr : f_linear.data(),
                      pairs ? nullptr : f_bias.data(), f_out.data(), f_bias.data() + 1, pairs ? nullptr : total.data(),
                      products.data(), pairs ? nullptr : d_linear.data(), d_out.data(), d_bias.data()};
    loss();
    mwuf_trained_forward(&net, sides, layers, found.data());
    mwuf_trained_backward(&net, sides, layers, d_logit.data());
    const std::string which = std::string("training") + (norm ? ", BatchNorm" : "") + (dropout ? ", dropout" : "") +
                              (pairs ? ", pairs: " : ": ");
    const long terms = in + h + g + (norm ? 2 * n : 0), back = 2 * terms + n;
    same(which + "logits", found, logit, terms);
    if (norm) {
        Doubles moments(4 * h);
        for (long j = 0; j < h; j++) moments[j] = 0.1 * mean0[j], moments[h + j] = 0.1 * var0[j] * double(n) / (n - 1);
        for (long k = 0; k < g; k++) {
            moments[2 * h + k] = 0.1 * mean1[k];
            moments[3 * h + k] = 0.1 * var1[k] * double(n) / (n - 1);
        }
        same(which + "running moments", run, moments, terms);
        same(which + "d gamma", d_s0, slopes(s0, loss), back);
        same(which + "d gamma of the second", d_s1, slopes(s1, loss), back);
    }
    same(which + "d shared rows", d_x0, slopes(x0, loss), back);
    same(which + "d rows", d_x1, slopes(x1, loss), back);
    same(which + "d weights", d_w0, slopes(w0, loss), back);
    same(which + "d weights of the second", d_w1, slopes(w1, loss), back);
    same(which + "d offsets", d_c0, slopes(c0, loss), back);
    same(which + "d offsets of the second", d_c1, slopes(c1, loss), back);
    if (!pairs) same(which + "d linear", d_linear, slopes(linear, loss), back);
    same(which + "d out", d_out, slopes(out, loss), back);
    same(which + "d bias", d_bias, {slopes(bias, loss)[1]}, back);
}

}  // namespace

int main() {
    check_products();
    for (long n : {1, 50, 9000}) check_dropout_noise(n % 3, n);
    for (long dim : {5, 16}) check_pair_products(dim);
    check_network(100, 20, 17, 9);
    check_network(1, 3, 64, 16);
    for (long dim : {5, 16}) check_tables(dim);
    for (long width : {5, 16}) check_attention(2, width), check_gru(width), check_unit(width);
    check_exp_and_log();
    for (long dim : {5, 16}) check_log_neurons(dim), check_power_head(50, dim);
    for (Holds holds : {Holds::Nothing, Holds::Sum, Holds::Fields}) {
        check_head(100, 16, holds);
        check_head(47, 12, holds);
    }
    for (bool norm : {false, true})
        for (bool dropout : {false, true})
            for (bool pairs : {false, true}) check_trained(norm, dropout, pairs);
    std::printf("%d of %d checks are wrong (registers of %ld floats)\n", wrong, checked, V);
    return wrong > 0;
}
