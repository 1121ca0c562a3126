// What native_checks.cpp makes its inputs of and compares with.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace {

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;
typedef std::vector<int64_t> Ids;

// The same draws on every machine: a linear congruential generator (Knuth's MMIX).
uint64_t state = 1;
double uniform() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return double(state >> 11) / 9007199254740992.0;
}
Floats draws(long n, double scale = 1) {
    Floats out(n);
    for (float& x : out) x = float(scale * (2 * uniform() - 1));
    return out;
}
Ids draw_ids(long n, long most) {
    Ids out(n);
    for (int64_t& x : out) x = int64_t(uniform() * double(most));
    return out;
}

int wrong = 0, checked = 0;

// The bound of tests/bounds.py: the terms that are added on the longest way, times their size, times 2^-23. The size is
// that of what is expected, or of what was larger before a part of it was taken away.
template <typename Found>
void same(const std::string& what, const Found& found, const Doubles& expected, long num_terms, double size = 0) {
    for (double x : expected) size = std::fmax(size, std::fabs(x));
    const double bound = double(num_terms) * std::ldexp(1.0, -23) * size;
    checked++;
    for (size_t i = 0; i < expected.size(); i++)
        if (!(std::fabs(double(found[i]) - expected[i]) <= bound)) {  // also where one is no number
            std::printf("WRONG %s [%zu]: %.9g, not %.9g (bound %.2g)\n", what.c_str(), i, double(found[i]), expected[i], bound);
            wrong++;
            return;
        }
}

Doubles wide(const Floats& x) { return Doubles(x.begin(), x.end()); }

// d loss / d x, by central differences in double.
Doubles slopes(Doubles& x, const std::function<double()>& loss) {
    Doubles out(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        const double before = x[i], h = 1e-6;
        x[i] = before + h;
        const double up = loss();
        x[i] = before - h;
        out[i] = (up - loss()) / (2 * h);
        x[i] = before;
    }
    return out;
}

double cross_entropy(double logit, double label) {
    return std::fmax(logit, 0) - logit * label + std::log1p(std::exp(-std::fabs(logit)));
}

}  // namespace
