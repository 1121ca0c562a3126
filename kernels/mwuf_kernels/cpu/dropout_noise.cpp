// What dropout multiplies by, from the stream of PCG64-DXSM: see dropout_noise.py.

#include <cstdint>

#include "pool.h"
#include "rows.h"

namespace {

typedef unsigned __int128 u128;

constexpr uint64_t MULTIPLIER = 0xda942042e4dd58b5;
constexpr long UNITS = 4;  // of 16 bits in a draw
constexpr long RUN = 256, RUNS = 4, DRAWS = RUN * RUNS;  // of a task: a run waits for its own products, four do not
constexpr double NS_OF_A_DRAW = 1.3;

// Some steps of the stream's state at once: state * factor + term.
struct Steps {
    u128 factor = 1, term = 0;
    u128 after(u128 state) const { return state * factor + term; }
    Steps then(const Steps& next) const { return {factor * next.factor, term * next.factor + next.term}; }
};

Steps steps(uint64_t number, u128 increment) {
    Steps all, power{MULTIPLIER, increment};
    for (; number; number >>= 1, power = power.then(power))
        if (number & 1) all = all.then(power);
    return all;
}

inline uint64_t draw(u128& state, u128 increment) {
    uint64_t high = uint64_t(state >> 64);
    const uint64_t low = uint64_t(state) | 1;
    high = (high ^ (high >> 32)) * MULTIPLIER;
    high = (high ^ (high >> 48)) * low;
    state = state * MULTIPLIER + increment;
    return high;
}

void expand(long n, const int16_t* units, int bound, float scale, float* out) {
    for (long i = 0; i < n; i++) out[i] = units[i] < bound ? scale : 0.0f;
}

u128 joined(long low, long high) { return u128(uint64_t(high)) << 64 | uint64_t(low); }

}  // namespace

extern "C" {

// out [n] = `scale` where a unit is below `bound`, else 0. Units are the draws' four numbers of 16 bits, with a sign, lowest
// first; the first `skipped` of them are left out.
void mwuf_dropout_noise(long state_low, long state_high, long increment_low, long increment_high, long skipped, long n,
                        long bound, float scale, float* out) {
    const u128 first = joined(state_low, state_high), increment = joined(increment_low, increment_high);
    const long number = (skipped + n + UNITS - 1) / UNITS;
    const Steps run = steps(RUN, increment);
    in_parallel((number + DRAWS - 1) / DRAWS, NS_OF_A_DRAW * double(number), [&](long task) {
        uint64_t draws[DRAWS];
        u128 states[RUNS] = {steps(uint64_t(task * DRAWS), increment).after(first)};
        for (long r = 1; r < RUNS; r++) states[r] = run.after(states[r - 1]);
        for (long i = 0; i < RUN; i++)
            for (long r = 0; r < RUNS; r++) draws[r * RUN + i] = draw(states[r], increment);
        int16_t units[DRAWS * UNITS];
        std::memcpy(units, draws, sizeof draws);
        const long begin = task * DRAWS * UNITS - skipped;
        const long from = begin < 0 ? -begin : 0, to = least(DRAWS * UNITS, n - begin);
        expand(to - from, units + from, int(bound), scale, out + begin + from);
    });
}

}  // extern "C"
