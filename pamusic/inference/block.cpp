// What one token a row does to a block of the stack, in one call, and what it sees of the context: `inference/int8.py` is
// the plain twin.
//
// Knows bytes and numbers; knows no torch. Weights, keys and values are bytes with a scale a row. What they are multiplied
// with is turned to 16 bits, so that a product is a sum of whole numbers: the same on every processor, in any order, on any
// number of threads. Plain loops, of which GCC and Clang make what the processor has; without OpenMP there is one thread.
//
// HEAD_DIM, the width of a head, is given to the compiler.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

constexpr int CHUNK = 16;  // outputs of a product that a thread takes at a time: their weights stay in its nearest cache
constexpr int GROUP = 4;   // rows, or positions, that are read side by side
constexpr float MOST = 127;  // of a byte with a sign

struct Matrix {
    const int8_t* bytes;  // [out, in]
    const float* scales;  // [out]
    int32_t out, in;
};

// The size of the largest number, `least` at least; where one is no number, that. By their bits, whose order as whole
// numbers is that of sizes, with what is no number above infinity: comparing would leave it out.
float largest(const float* x, int width, float least) {
    int32_t most;
    std::memcpy(&most, &least, sizeof most);
    for (int k = 0; k < width; ++k) {
        int32_t bits;
        std::memcpy(&bits, x + k, sizeof bits);
        most = std::max(most, bits & 0x7fffffff);
    }
    float size;
    std::memcpy(&size, &most, sizeof size);
    return size;
}

// A row of numbers as whole ones of 16 bits, so small that their product with a row of bytes has 31; gives their scale.
// A row in which one is infinite or no number is zeros with a scale that is no number, so that the sampler hears of it.
float as_shorts(const float* x, int width, int16_t* shorts) {
    const float limit = std::min(32767.0f, std::floor(2147483647.0f / MOST / width));
    const float most = largest(x, width, 1e-30f);
    if (!std::isfinite(most)) {
        std::fill(shorts, shorts + width, int16_t{0});
        return NAN;
    }
    const float factor = limit / most;
    for (int k = 0; k < width; ++k) shorts[k] = static_cast<int16_t>(std::rint(x[k] * factor));
    return most / limit;
}

float as_bytes(const float* x, int8_t* bytes) {
    const float most = largest(x, HEAD_DIM, 1e-12f);
    if (!std::isfinite(most)) {
        std::fill(bytes, bytes + HEAD_DIM, int8_t{0});
        return NAN;
    }
    const float scale = most / MOST;
    for (int i = 0; i < HEAD_DIM; ++i) bytes[i] = static_cast<int8_t>(std::rint(x[i] / scale));
    return scale;
}

// x / sqrt(sum(x²) + least²)
void as_unit(const float* x, int width, float least, float* unit) {
    float squares = least * least;
#pragma omp simd reduction(+ : squares)
    for (int k = 0; k < width; ++k) squares += x[k] * x[k];
    const float norm = std::sqrt(squares);
    for (int k = 0; k < width; ++k) unit[k] = x[k] / norm;
}

// e to the power of what is not above 0, to 3 millionths: a polynomial between two powers of 2, which loops can be made of.
inline float exponential(float x) {
    x = std::max(x, -87.0f);
    const int32_t power = static_cast<int32_t>(x * 1.44269504f - 0.5f);
    const float rest = x - power * 0.69314718f;
    const float near = 1 + rest * (1 + rest * (1 / 2.0f + rest * (1 / 6.0f + rest * (1 / 24.0f + rest / 120.0f))));
    const int32_t bits = (power + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return near * scale;
}

// Scores as what each weighs, the heaviest 1; gives their sum.
float as_weights(float* scores, int64_t n) {
    float most = scores[0], total = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; ++j) most = std::max(most, scores[j]);
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; ++j) {
        scores[j] = exponential(scores[j] - most);
        total += scores[j];
    }
    return total;
}

// Rows of numbers in 16 bits, with a scale each.
class Shorts {
public:
    Shorts(int rows, int most) : numbers(new int16_t[static_cast<size_t>(rows) * most]), scales(new float[rows]) {}

    void take(int row, const float* x, int width) { scales[row] = as_shorts(x, width, &numbers[row * width]); }

    // Hands the products with a matrix to `give(row, out, product)`, all threads of a team together.
    template <class Give>
    void multiplied(const Matrix& matrix, int rows, Give give) const {
#pragma omp for schedule(static)
        for (int first = 0; first < matrix.out; first += CHUNK) {
            const int last = std::min(matrix.out, first + CHUNK);
            int row = 0;
            for (; row + GROUP <= rows; row += GROUP) some<GROUP>(matrix, row, first, last, give);
            for (; row < rows; ++row) some<1>(matrix, row, first, last, give);
        }
    }

private:
    // Those of `ROWS` rows from `row` on: bytes are turned to 16 bits for all of them at once.
    template <int ROWS, class Give>
    void some(const Matrix& matrix, int row, int first, int last, Give give) const {
        const int in = matrix.in;
        const int16_t* x = &numbers[row * in];
        for (int out = first; out < last; ++out) {
            const int8_t* weights = matrix.bytes + static_cast<int64_t>(out) * in;
            int32_t sums[ROWS] = {};
            for (int k = 0; k < in; ++k)
                for (int i = 0; i < ROWS; ++i) sums[i] += weights[k] * x[i * in + k];
            for (int i = 0; i < ROWS; ++i) give(row + i, out, sums[i] * scales[row + i] * matrix.scales[out]);
        }
    }

    std::unique_ptr<int16_t[]> numbers;
    std::unique_ptr<float[]> scales;
};

}  // namespace

extern "C" {

// A block's weights; gains and the scale of attention are multiplied into them.
struct Block {
    Matrix project, output, up, down;
    float least, least_of_heads;  // keep the norms of the stream and of a head from dividing by zero
};

// What heads see: n positions from `first` on, the last of which is the token's own and still to be written.
struct Seen {
    int8_t *keys, *values;             // [rows, heads, room, HEAD_DIM]
    float *key_scales, *value_scales;  // [rows, heads, room]
    int64_t room, first, n;
};

// The context: n positions from `first` on, of whose keys only what their place turned is held.
struct Context {
    const int64_t* ids;    // [rows, room]
    const int8_t* turned;  // [rows, heads, room, num_turned]
    const float* scales;   // [rows, heads, room]
    int64_t room, first, n;
    int32_t num_turned, vocab;
};

// Rotates queries and keys: each dimension times `own`, and its partner times `partners`.
struct Turn {
    const float *own, *partners;  // [2, HEAD_DIM] of all rows, or of each, of queries and of keys
    const int64_t* partner;       // [HEAD_DIM]
    int64_t row;                  // from the numbers of a row to those of the next; 0 where all have the same
};
}

namespace {

void turned(const float* x, float least, const Turn& turn, int row, int which, float* to) {
    float unit[HEAD_DIM];
    as_unit(x, HEAD_DIM, least, unit);
    const int64_t at = row * turn.row + which * HEAD_DIM;
    const float *own = turn.own + at, *partners = turn.partners + at;
    for (int i = 0; i < HEAD_DIM; ++i) to[i] = unit[i] * own[i] + unit[turn.partner[i]] * partners[i];
}

// What a head gathers, `[HEAD_DIM]`, for the query, key and value that were projected for it; `place` counts heads of all
// rows, and `scores` has room for n.
void gathered(const float* query, const float* key, const float* value, int row, int place, float least,
              const Turn& turn, const Seen& seen, float* scores, float* to) {
    const int64_t n = seen.n, first = place * seen.room + seen.first, own = first + n - 1;
    float x[HEAD_DIM];
    turned(key, least, turn, row, 1, x);
    seen.key_scales[own] = as_bytes(x, seen.keys + own * HEAD_DIM);
    seen.value_scales[own] = as_bytes(value, seen.values + own * HEAD_DIM);
    turned(query, least, turn, row, 0, x);
    int16_t asked[HEAD_DIM];
    const float scale = as_shorts(x, HEAD_DIM, asked);

    const int8_t *keys = seen.keys + first * HEAD_DIM, *values = seen.values + first * HEAD_DIM;
    const float *key_scales = seen.key_scales + first, *value_scales = seen.value_scales + first;
    for (int64_t j = 0; j < n; ++j) {
        int32_t sum = 0;
        for (int i = 0; i < HEAD_DIM; ++i) sum += keys[j * HEAD_DIM + i] * asked[i];
        scores[j] = sum * scale * key_scales[j];
    }
    const float total = as_weights(scores, n);
    for (int64_t j = 0; j < n; ++j) scores[j] *= value_scales[j];
    float sums[HEAD_DIM] = {};
    int64_t j = 0;
    for (; j + GROUP <= n; j += GROUP) {
        const int8_t *a = values + j * HEAD_DIM, *b = a + HEAD_DIM, *c = b + HEAD_DIM, *d = c + HEAD_DIM;
        const float* weights = scores + j;
        for (int i = 0; i < HEAD_DIM; ++i)
            sums[i] += (weights[0] * a[i] + weights[1] * b[i]) + (weights[2] * c[i] + weights[3] * d[i]);
    }
    for (; j < n; ++j)
        for (int i = 0; i < HEAD_DIM; ++i) sums[i] += scores[j] * values[j * HEAD_DIM + i];
    for (int i = 0; i < HEAD_DIM; ++i) to[i] = sums[i] / total;
}

// How much a head gives to each id of the vocabulary, `[vocab]`, for what is turned of its query; `of_ids` `[vocab]` are the
// scores of the rest of each id's key. `shorts` and `scores` have room for a query and for n.
void shared(const float* query, const float* of_ids, int row, int place, const Context& context, int16_t* shorts,
            float* scores, float* to) {
    const int64_t n = context.n, first = place * context.room + context.first;
    const int num_turned = context.num_turned;
    const float scale = as_shorts(query, num_turned, shorts);
    const int64_t* ids = context.ids + row * context.room + context.first;
    const int8_t* keys = context.turned + first * num_turned;
    const float* scales = context.scales + first;
    for (int64_t j = 0; j < n; ++j) {
        int32_t sum = 0;
        for (int i = 0; i < num_turned; ++i) sum += keys[j * num_turned + i] * shorts[i];
        scores[j] = sum * scale * scales[j] + of_ids[ids[j]];
    }
    const float total = as_weights(scores, n);
    std::fill(to, to + context.vocab, 0.0f);
    for (int64_t j = 0; j < n; ++j) to[ids[j]] += scores[j];
    for (int id = 0; id < context.vocab; ++id) to[id] /= total;
}

// What follows the heads, if there are any: their output, then the MLP, each added to the stream. `shorts` is one thread's
// own.
void finished(const Block& block, int rows, const float* heads, float* hidden, float* x, Shorts& shorts) {
    const int width = block.down.out, wide = block.up.out;
    const std::unique_ptr<float[]> unit(new float[width]);
    const auto add = [=](int row, int out, float product) { x[row * width + out] += product; };
    if (heads) {
        for (int row = 0; row < rows; ++row) shorts.take(row, heads + row * width, width);
        shorts.multiplied(block.output, rows, add);
    }
    for (int row = 0; row < rows; ++row) {
        as_unit(x + row * width, width, block.least, unit.get());
        shorts.take(row, unit.get(), width);
    }
    shorts.multiplied(block.up, rows, [=](int row, int out, float product) {
        const float kept = std::max(product, 0.0f);
        hidden[row * wide + out] = kept * kept;
    });
    for (int row = 0; row < rows; ++row) shorts.take(row, hidden + row * wide, wide);
    shorts.multiplied(block.down, rows, add);
}

}  // namespace

extern "C" {

// The residual stream x `[rows, width]` after a block, in its place. Keys and values are made from `source`
// `[rows, width]`, which is x in a block of self-attention.
void step(const Block* block, int rows, const float* source, float* x, const Seen* seen, const Turn* turn, int threads) {
    const int width = block->output.out, wide = block->up.out, heads = width / HEAD_DIM;
    const std::unique_ptr<float[]> projected(new float[rows * 3 * width]), gathers(new float[rows * width]),
        hidden(new float[rows * wide]);
#pragma omp parallel num_threads(threads)
    {
        Shorts shorts(rows, std::max(width, wide));
        const std::unique_ptr<float[]> unit(new float[width]), scores(new float[seen->n]);
        const Matrix &all = block->project, of_x{all.bytes, all.scales, source == x ? all.out : width, all.in},
                     of_source{all.bytes + static_cast<int64_t>(width) * all.in, all.scales + width, 2 * width, all.in};
        float* to = projected.get();
        for (int row = 0; row < rows; ++row) {
            as_unit(x + row * width, width, block->least, unit.get());
            shorts.take(row, unit.get(), width);
        }
        shorts.multiplied(of_x, rows, [=](int row, int out, float product) { to[row * 3 * width + out] = product; });
        if (source != x) {
            for (int row = 0; row < rows; ++row) {
                as_unit(source + row * width, width, block->least, unit.get());
                shorts.take(row, unit.get(), width);
            }
            shorts.multiplied(of_source, rows,
                              [=](int row, int out, float product) { to[row * 3 * width + width + out] = product; });
        }
#pragma omp for schedule(static)
        for (int place = 0; place < rows * heads; ++place) {
            const int row = place / heads;
            const float* query = &projected[row * 3 * width + place % heads * HEAD_DIM];
            gathered(query, query + width, query + 2 * width, row, place, block->least_of_heads, *turn, *seen,
                     scores.get(), &gathers[place * HEAD_DIM]);
        }
        finished(*block, rows, gathers.get(), hidden.get(), x, shorts);
    }
}

// The same from the heads `[rows, width]` on, or from the MLP on where there are none.
void finish(const Block* block, int rows, const float* heads, float* x, int threads) {
    const int width = block->down.out, wide = block->up.out;
    const std::unique_ptr<float[]> hidden(new float[rows * wide]);
#pragma omp parallel num_threads(threads)
    {
        Shorts shorts(rows, std::max(width, wide));
        finished(*block, rows, heads, hidden.get(), x, shorts);
    }
}

// How much each head gives to each id, `[rows, heads, vocab]`.
void share(const Context* context, int rows, int heads, const float* queries, const float* of_ids, float* to,
           int threads) {
#pragma omp parallel num_threads(threads)
    {
        const std::unique_ptr<int16_t[]> shorts(new int16_t[context->num_turned]);
        const std::unique_ptr<float[]> scores(new float[context->n]);
#pragma omp for schedule(static)
        for (int place = 0; place < rows * heads; ++place)
            shared(queries + place * context->num_turned, of_ids + place * context->vocab, place / heads, place, *context,
                   shorts.get(), scores.get(), to + place * context->vocab);
    }
}
}
