// What the loops over rows are made of: products of small matrices that stay in the caches, and steps along a row.
//
// torch takes a layer after the other over the whole batch, so what lies between two products goes to memory and back,
// and each step in between costs a call. Here a block of rows goes all the way before the next one.
// Compiled by native.py with -march=native for the machine that runs it; plain C types cross the border.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr long V = 16, ROWS = 12, ROWS_OF_3 = 8;  // Floats of a register; rows of a tile two and three registers wide.
#elif defined(__AVX__)
constexpr long V = 8, ROWS = 6, ROWS_OF_3 = 4;
#else
constexpr long V = 4, ROWS = 6, ROWS_OF_3 = 4;
#endif
constexpr long BLOCK = 48;  // Rows at once: a multiple of both; 48 x 64 floats are 12 KB.

inline long least(long a, long b) { return a < b ? a : b; }

// Rows are cut into spans where each span keeps sums of its own, of SPAN rows and at most MOST_SPANS: a function of n
// alone, so that sums do not depend on the threads.
constexpr long SPAN = 3 * BLOCK, MOST_SPANS = 128;
inline long span_rows(long n) {
    const long even = (n + MOST_SPANS - 1) / MOST_SPANS;
    return even <= SPAN ? SPAN : (even + BLOCK - 1) / BLOCK * BLOCK;
}
inline long spans_of(long n) { return (n + span_rows(n) - 1) / span_rows(n); }

// Memory of this thread that is kept between calls: what is asked for anew comes in pages that are filled with zeros
// first. Each for what is needed at the same time.
enum class Kept { ForTheCall, ForTheTask, ForMoments };
template <Kept kept>
float* workspace(long n) {
    thread_local std::vector<float> memory;
    if (long(memory.size()) < n) memory.resize(n);
    return memory.data();
}

#define UNROLLED _Pragma("GCC unroll 16")

typedef float Vec __attribute__((vector_size(V * sizeof(float))));
typedef float Loose __attribute__((vector_size(V * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
inline void store(float* at, Vec x) { *reinterpret_cast<Loose*>(at) = x; }

// The first n < V of a register; the rest is zero, and is not written. Lane by lane a product of widths that are no
// multiples of V takes twice as long.
#if defined(__AVX512F__)
inline Vec load_some(const float* at, long n) { return Vec(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), at)); }
inline void store_some(float* at, Vec x, long n) { _mm512_mask_storeu_ps(at, __mmask16((1u << n) - 1), __m512(x)); }
#elif defined(__AVX__)
inline __m256i first_lanes(long n) {
    static constexpr int32_t LANES[2 * V] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(LANES + V - n));
}
inline Vec load_some(const float* at, long n) { return Vec(_mm256_maskload_ps(at, first_lanes(n))); }
inline void store_some(float* at, Vec x, long n) { _mm256_maskstore_ps(at, first_lanes(n), __m256(x)); }
#else
inline Vec load_some(const float* at, long n) {
    Vec out{};
    for (long i = 0; i < n; i++) out[i] = at[i];
    return out;
}
inline void store_some(float* at, Vec x, long n) {
    for (long i = 0; i < n; i++) at[i] = x[i];
}
#endif

// A register, or the first n < V of one.
inline Vec part(const float* at, long n) { return n == V ? load(at) : load_some(at, n); }
inline void put(float* at, Vec x, long n) { n == V ? store(at, x) : store_some(at, x, n); }

// A matrix in memory: element (row, column) is at[row * row_step + column * step].
struct Matrix {
    const float* at;
    long row_step, step;
};

inline Matrix shifted(Matrix m, long row, long column) {
    return {m.at ? m.at + row * m.row_step + column * m.step : nullptr, m.row_step, m.step};
}

// What happens to a sum before it is written.
enum class Then { Nothing, Relu, ReluBack };

// c [R, n] = then(from + a [R, k] b [k, n]) of W registers, n = W * V columns; the first n < V of one with PART.
// No `from` is zero, and one with row_step 0 a bias. ReluBack keeps what a ReLU that gave `mask` lets through.
// The columns of all but `a` lie side by side.
template <Then then, long R, long W, bool PART>
inline void tile(long k, Matrix a, Matrix b, Matrix from, Matrix mask, float* c, long c_step, long n) {
    const auto read = [n](const float* at) { return PART ? load_some(at, n) : load(at); };
    // Unrolled before anything else looks at it, or the sums are kept in memory: half the speed.
    Vec sum[R][W];
    UNROLLED for (long r = 0; r < R; r++)
        UNROLLED for (long w = 0; w < W; w++) sum[r][w] = from.at ? read(from.at + r * from.row_step + w * V) : Vec{};
    for (long p = 0; p < k; p++) {
        Vec of_b[W];
        UNROLLED for (long w = 0; w < W; w++) of_b[w] = read(b.at + p * b.row_step + w * V);
        UNROLLED for (long r = 0; r < R; r++) {
            const float x = a.at[r * a.row_step + p * a.step];
            UNROLLED for (long w = 0; w < W; w++) sum[r][w] += x * of_b[w];
        }
    }
    UNROLLED for (long r = 0; r < R; r++)
        UNROLLED for (long w = 0; w < W; w++) {
            Vec out = sum[r][w];
            if (then == Then::Relu) out = out < 0 ? Vec{} : out;  // keeps NaN, as torch does
            if (then == Then::ReluBack) out = read(mask.at + r * mask.row_step + w * V) <= 0 ? Vec{} : out;
            if (PART)
                store_some(c + r * c_step, out, n);
            else
                store(c + r * c_step + w * V, out);
        }
}

// R rows of `product`. A third register takes a pass of its own over the rows, unless it is the last and fits.
template <Then then, long R>
inline void row_of_tiles(long n, long k, Matrix a, Matrix b, Matrix from, Matrix mask, float* c, long c_step) {
    for (long column = 0; column < n;) {
        const Matrix of_b = shifted(b, 0, column), of_from = shifted(from, 0, column), of_mask = shifted(mask, 0, column);
        const long left = n - column;
        if (R <= ROWS_OF_3 && left == 3 * V)
            tile<then, R, R <= ROWS_OF_3 ? 3 : 1, false>(k, a, of_b, of_from, of_mask, c + column, c_step, 3 * V);
        else if (left >= 2 * V)
            tile<then, R, 2, false>(k, a, of_b, of_from, of_mask, c + column, c_step, 2 * V);
        else if (left >= V)
            tile<then, R, 1, false>(k, a, of_b, of_from, of_mask, c + column, c_step, V);
        else
            tile<then, R, 1, true>(k, a, of_b, of_from, of_mask, c + column, c_step, left);
        column += R <= ROWS_OF_3 && left == 3 * V ? 3 * V : left >= 2 * V ? 2 * V : V;
    }
}

// c [m, n] = then(from + a [m, k] b [k, n]).
template <Then then>
void product(long m, long n, long k, Matrix a, Matrix b, Matrix from, Matrix mask, float* c, long c_step) {
    for (long r = 0; r < m;) {
        const Matrix of_a = shifted(a, r, 0), of_from = shifted(from, r, 0), of_mask = shifted(mask, r, 0);
        const long left = m - r;
        const bool of_three = n == 3 * V && left >= ROWS_OF_3;
        if (of_three)
            row_of_tiles<then, ROWS_OF_3>(n, k, of_a, b, of_from, of_mask, c + r * c_step, c_step);
        else if (left >= ROWS)
            row_of_tiles<then, ROWS>(n, k, of_a, b, of_from, of_mask, c + r * c_step, c_step);
        else if (left >= 4)
            row_of_tiles<then, 4>(n, k, of_a, b, of_from, of_mask, c + r * c_step, c_step);
        else
            row_of_tiles<then, 1>(n, k, of_a, b, of_from, of_mask, c + r * c_step, c_step);
        r += of_three ? ROWS_OF_3 : left >= ROWS ? ROWS : left >= 4 ? 4 : 1;
    }
}

constexpr Matrix NONE{nullptr, 0, 1};

template <long W>
struct Lanes {
    typedef float Type __attribute__((vector_size(W * sizeof(float))));
};

// The upper half is added to the lower one until one lane is left. As vectors: lane by lane it takes thrice as long.
template <long W>
inline float sum_of(typename Lanes<W>::Type x) {
    if constexpr (W == 4) {
        return (x[0] + x[2]) + (x[1] + x[3]);
    } else {
        typename Lanes<W / 2>::Type lower, upper;
        std::memcpy(&lower, &x, sizeof(lower));
        std::memcpy(&upper, reinterpret_cast<const char*>(&x) + sizeof(lower), sizeof(upper));
        return sum_of<W / 2>(lower + upper);
    }
}
inline float sum_of_lanes(Vec x) { return sum_of<V>(x); }

inline float dot(const float* a, const float* b, long n) {
    Vec sum{};
    long i = 0;
    for (; i + V <= n; i += V) sum += load(a + i) * load(b + i);
    if (i < n) sum += load_some(a + i, n - i) * load_some(b + i, n - i);
    return sum_of_lanes(sum);
}

typedef int32_t Whole __attribute__((vector_size(V * sizeof(int32_t))));

inline Vec as_floats(Whole bits) {
    Vec out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
}

// e^r for |r| <= ln(2) / 2, by the Taylor series to r^7 / 7! (3e-8 of it is left out).
inline Vec exp_of_rest(Vec r) {
    Vec sum = Vec{} + 1.0f / 5040;
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + c;
    return sum;
}
// x - n ln(2), which is in two parts.
inline Vec rest_of(Vec x, Vec n) { return (x - n * 0.693359375f) + n * 2.12194440e-4f; }

// e^x = 2^n e^r for x <= 0.
inline Vec exp_of_negative(Vec x) {
    x = x < -87.0f ? Vec{} - 87.0f : x;  // below, 2^n is none that float32 holds in full
    const Vec scaled = x * 1.44269504f - 0.5f;
    const Whole n = __builtin_convertvector(scaled, Whole);  // towards zero
    return exp_of_rest(rest_of(x, __builtin_convertvector(n, Vec))) * as_floats((n + 127) << 23);
}

// e^x, infinity where float32 has no number for it.
inline Vec exp_of(Vec x) {
    x = x < -104.0f ? Vec{} - 104.0f : x > 89.0f ? Vec{} + 89.0f : x;
    const Vec scaled = x * 1.44269504f + 200.5f;  // above zero, which it is rounded towards
    // Of NaN the number is the lowest, from which nothing can be taken away.
    const Whole number = __builtin_convertvector(scaled, Whole), n = (number > 0 ? number : 0) - 200, half = n >> 1;
    const Vec e = exp_of_rest(rest_of(x, __builtin_convertvector(n, Vec)));
    return e * as_floats((half + 127) << 23) * as_floats((n - half + 127) << 23);  // 2^128 is none, nor is 2^-127
}

// ln(x) of normal x > 0: n ln(2) + ln(1 + f) with 1 + f from .71 to 1.41, by 2 atanh(f / (2 + f)) to its ninth power.
inline Vec log_of(Vec x) {
    Whole bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const Whole n = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3: sqrt(1/2)
    const Vec f = as_floats(bits - (n << 23)) - 1, whole = __builtin_convertvector(n, Vec);
    const Vec z = f / (2 + f), square = z * z;
    Vec sum = Vec{} + 1.0f / 9;
    for (float c : {1.0f / 7, 1.0f / 5, 1.0f / 3}) sum = sum * square + c;
    return whole * 0.693359375f + (2 * z + (2 * z * square * sum - whole * 2.12194440e-4f)) + (x - x);  // NaN stays NaN
}

// Steps along a row, register by register: rows are short, and a loop that the compiler makes vectors of begins with
// questions (how long, do they overlap) that take as long as 16 floats.
template <typename Wide, typename Narrow>
inline void along(long n, Wide wide, Narrow narrow) {
    long i = 0;
    for (; i + V <= n; i += V) wide(i);
    for (; i < n; i++) narrow(i);
}

// out = x
inline void copy_of(float* out, const float* x, long n) {
    along(n, [=](long i) { store(out + i, load(x + i)); }, [=](long i) { out[i] = x[i]; });
}

// out = a + b, or a
inline void sum_of(float* out, const float* a, const float* b, long n) {
    if (b)
        along(n, [=](long i) { store(out + i, load(a + i) + load(b + i)); }, [=](long i) { out[i] = a[i] + b[i]; });
    else
        copy_of(out, a, n);
}

// out = factor * x
inline void times(float* out, float factor, const float* x, long n) {
    along(n, [=](long i) { store(out + i, factor * load(x + i)); }, [=](long i) { out[i] = factor * x[i]; });
}

// out += x
inline void add_to(float* out, const float* x, long n) {
    along(n, [=](long i) { store(out + i, load(out + i) + load(x + i)); }, [=](long i) { out[i] += x[i]; });
}

// out += factor * x
inline void add_times(float* out, float factor, const float* x, long n) {
    along(n, [=](long i) { store(out + i, load(out + i) + factor * load(x + i)); },
          [=](long i) { out[i] += factor * x[i]; });
}

// out = relu(a + b), or relu(a)
inline void relu_of_sum(float* out, const float* a, const float* b, long n) {
    sum_of(out, a, b, n);
    along(
        n, [=](long i) { const Vec x = load(out + i); store(out + i, x < 0 ? Vec{} : x); },
        [=](long i) { out[i] = out[i] < 0 ? 0 : out[i]; });
}

}  // namespace
