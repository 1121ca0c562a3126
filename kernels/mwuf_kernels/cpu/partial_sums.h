// Sums over rows that spans of rows have each made a part of: added up in the order of the spans.

#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "rows.h"

namespace {

// Tasks of several lists, one list after another.
class Lists {
   public:
    void add(long tasks) { ends_.push_back(size() + tasks); }
    long size() const { return ends_.empty() ? 0 : ends_.back(); }
    // Which list, and which of its tasks.
    std::pair<long, long> of(long task) const {
        const long list = std::upper_bound(ends_.begin(), ends_.end(), task) - ends_.begin();
        return {list, task - (list ? ends_[list - 1] : 0)};
    }

   private:
    std::vector<long> ends_;
};

// What each span keeps: matrices, side by side in one stretch of memory.
class PartialSums {
   public:
    explicit PartialSums(long spans) : spans_(spans) {}

    // A matrix of sums that becomes out [rows, columns], whose rows are `step` apart; null is none. Returns its place in
    // a span's stretch.
    long add(float* out, long rows, long columns, long step) {
        const long place = size_;
        if (!out) return place;
        matrices_.push_back({out, rows, columns, step, place});
        size_ += rows * columns;
        return place;
    }
    long add(float* out, long columns) { return add(out, 1, columns, columns); }

    long floats() const { return spans_ * size_; }
    void use(float* memory) { memory_ = memory; }
    float* clear(long span) { return static_cast<float*>(std::memset(at(span), 0, size_ * sizeof(float))); }
    float* at(long span) const { return memory_ + span * size_; }

    void list(Lists& tasks) const {
        for (const Matrix_& matrix : matrices_) tasks.add((matrix.rows + STRIP - 1) / STRIP);
    }
    long matrices() const { return long(matrices_.size()); }

    // Adds up some rows of a matrix.
    void add_up(long which, long strip) const {
        const Matrix_& matrix = matrices_[which];
        for (long row = strip * STRIP; row < least(strip * STRIP + STRIP, matrix.rows); row++) {
            float* out = matrix.out + row * matrix.step;
            const float* from = memory_ + matrix.place + row * matrix.columns;
            if (!spans_) std::memset(out, 0, matrix.columns * sizeof(float));
            for (long span = 0; span < spans_; span++, from += size_)
                span ? add_to(out, from, matrix.columns) : copy_of(out, from, matrix.columns);
        }
    }

   private:
    static constexpr long STRIP = 8;  // rows of a task
    struct Matrix_ {
        float* out;
        long rows, columns, step, place;
    };
    std::vector<Matrix_> matrices_;
    long spans_, size_ = 0;
    float* memory_ = nullptr;
};

// Adds all of them up.
inline void add_up(const std::vector<const PartialSums*>& all) {
    Lists tasks;
    std::vector<std::pair<const PartialSums*, long>> owners;
    double floats = 0;
    for (const PartialSums* sums : all) {
        sums->list(tasks);
        for (long matrix = 0; matrix < sums->matrices(); matrix++) owners.push_back({sums, matrix});
        floats += double(sums->floats());
    }
    in_parallel(tasks.size(), 2 * floats / V, [&](long task) {
        const auto [list, strip] = tasks.of(task);
        owners[list].first->add_up(owners[list].second, strip);
    });
}

}  // namespace
