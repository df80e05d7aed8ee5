/* Attention among few positions and its gradients, for training on a processor, where torch's kernel loses time.
 *
 * Queries, keys and values are taken where their linear layers left them, so that nothing is moved between the two, and
 * captions of several lengths come in one call. A sequence and head is one task; tasks write apart from each other, so
 * the bits depend neither on the number of threads nor on which of them takes a task. Everything is float32.
 *
 * Meanings are those of torch's scaled_dot_product_attention; opencoca/model/attention_native.py calls this.
 */

#include <math.h>
#include <stdlib.h>

#include <omp.h>

#include "vectors.h"

#define MOST 80            /* queries, and keys, of a sequence */
#define PANEL (2 * LANES)  /* numbers of a head's vector that are summed at once, */
#define ROWS 6             /* for as many rows */
#define WHOLE 16           /* rows of weights are filled up to whole vectors of either width */

/* What Python fills in: the same fields in the same order are in opencoca/model/attention_native.py. */
typedef struct {
    int64_t sequences, queries, keys; /* how many, and how long each of them is */
    int64_t query_row, key_row;       /* where the first one begins */
    int64_t weights;                  /* where its softmax's outputs begin: [sequences, heads, queries, keys up to WHOLE] */
} Run;

typedef struct {
    int64_t runs, heads, wide, causal; /* wide: of a head's vector, a multiple of PANEL */
    const float *q, *kv;               /* [X, heads * wide]; [Y, 2 * heads * wide], keys beside values */
    float *weights, *out;              /* out: like q */
    const float *out_gradient;
    float *q_gradient, *kv_gradient;
} Attention;

/* One sequence and head. */
typedef struct {
    int64_t queries, keys, padded, apart; /* apart: from one query to the next; keys are twice as far from each other */
    int64_t q, kv, weights;
} Task;

int64_t opencoca_attention_interface(void) { return 1000000 + sizeof(Run) + sizeof(Attention); }

static Task task_of(const Attention *a, const Run *runs, int64_t number) {
    int64_t sequence = number / a->heads, head = number % a->heads, width = a->heads * a->wide;
    while (sequence >= runs->sequences) sequence -= runs->sequences, runs++;
    int64_t padded = (runs->keys + WHOLE - 1) / WHOLE * WHOLE;
    return (Task){
        runs->queries, runs->keys, padded, width,
        (runs->query_row + sequence * runs->queries) * width + head * a->wide,
        (runs->key_row + sequence * runs->keys) * 2 * width + head * a->wide,
        runs->weights + (sequence * a->heads + head) * runs->queries * padded,
    };
}

/* Dot products of `rows` vectors with four others, whose distance is `apart`. */
INLINE void dots_of(int rows, const float *a, int64_t a_apart, const float *b, int64_t b_apart, int64_t wide, float *to,
                    int64_t to_apart) {
    vec s[2][4] = {{{0}}};
    for (int64_t i = 0; i < wide; i += LANES)
        for (int k = 0; k < 4; k++) {
            vec other = load(b + k * b_apart + i);
            for (int r = 0; r < rows; r++) s[r][k] += load(a + r * a_apart + i) * other;
        }
    for (int r = 0; r < rows; r++) {
        __m128 low = _mm_hadd_ps(quarter(s[r][0]), quarter(s[r][1])), high = _mm_hadd_ps(quarter(s[r][2]), quarter(s[r][3]));
        _mm_storeu_ps(to + r * to_apart, _mm_hadd_ps(low, high));
    }
}

/* to [rows, padded]: dot products of rows with all keys; what stands behind the keys is unspecified. */
static void dots(const float *a, int64_t a_apart, int64_t rows, const float *b, int64_t b_apart, int64_t keys,
                 int64_t wide, float *to, int64_t padded) {
    for (int64_t key = 0; key < keys; key += 4) {
        int64_t first = keys >= 4 && key + 4 > keys ? keys - 4 : key; /* the last four, some of them once more */
        for (int64_t row = 0; row < rows; row += 2) {
            const float *from = a + row * a_apart, *with = b + first * b_apart;
            float *there = to + row * padded + first;
            int64_t between = keys < 4 ? 0 : b_apart; /* fewer than four: below */
            if (keys < 4) {
                for (int64_t r = row; r < rows && r < row + 2; r++)
                    for (int64_t k = 0; k < keys; k++) {
                        float four[4];
                        dots_of(1, a + r * a_apart, a_apart, b + k * b_apart, between, wide, four, 4);
                        to[r * padded + k] = four[0];
                    }
            } else if (row + 1 < rows)
                dots_of(2, from, a_apart, with, between, wide, there, padded);
            else
                dots_of(1, from, a_apart, with, between, wide, there, padded);
        }
    }
}

INLINE void sums_of(int rows, const float *weight, int64_t row_apart, int64_t next, int64_t count, const float *b,
                    int64_t b_apart, float *to, int64_t to_apart) {
    vec s[ROWS][2];
    for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = (vec){0};
    for (int64_t j = 0; j < count; j++, weight += next, b += b_apart) {
        vec low = load(b), high = load(b + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            s[r][0] += weight[r * row_apart] * low;
            s[r][1] += weight[r * row_apart] * high;
        }
    }
    for (int r = 0; r < rows; r++) store(to + r * to_apart, s[r][0]), store(to + r * to_apart + LANES, s[r][1]);
}

/* to [rows, wide] = weights [rows, count] b [count, wide]; `row_apart` and `next` say how the weights lie. */
static void sums(const float *weight, int64_t row_apart, int64_t next, int64_t rows, int64_t count, const float *b,
                 int64_t b_apart, int64_t wide, float *to, int64_t to_apart) {
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t i = 0; i < wide; i += PANEL) {
            const float *own = weight + row * row_apart;
            float *there = to + row * to_apart + i;
            switch (rows - row) {
#define CASE(n) \
    case n: sums_of(n, own, row_apart, next, count, b + i, b_apart, there, to_apart); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
            default: sums_of(ROWS, own, row_apart, next, count, b + i, b_apart, there, to_apart);
            }
        }
}

INLINE float total(vec x) {
    float four[4];
    _mm_storeu_ps(four, quarter(x));
    return (four[0] + four[1]) + (four[2] + four[3]);
}

/* In place of scores, what sums to 1; those from `seen` on are 0. */
static void softmax(float *row, int64_t seen, int64_t padded, float scale) {
    vec most = all(-INFINITY), sum = {0};
    for (int64_t s = seen; s < padded; s++) row[s] = -INFINITY;
    for (int64_t s = 0; s < padded; s += LANES) {
        vec these = load(row + s);
        most = chosen(these > most, these, most);
    }
    float largest = -INFINITY, several[LANES];
    store(several, most);
    for (int i = 0; i < LANES; i++) largest = several[i] > largest ? several[i] : largest;
    for (int64_t s = 0; s < padded; s += LANES) {
        vec e = exponential((load(row + s) - largest) * scale);
        sum += e;
        store(row + s, e);
    }
    float share = 1.0f / total(sum);
    for (int64_t s = 0; s < padded; s += LANES) store(row + s, load(row + s) * share);
}

static int64_t tasks_of(const Attention *a, const Run *runs) {
    int64_t sequences = 0;
    for (int64_t r = 0; r < a->runs; r++) sequences += runs[r].sequences;
    return sequences * a->heads;
}

void opencoca_attend(const Attention *a, const Run *runs, int threads) {
    int64_t count = tasks_of(a, runs), width = a->heads * a->wide;
    float scale = 1.0f / sqrtf((float)a->wide);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t number = 0; number < count; number++) {
        Task t = task_of(a, runs, number);
        float *weights = a->weights + t.weights;
        dots(a->q + t.q, t.apart, t.queries, a->kv + t.kv, 2 * t.apart, t.keys, a->wide, weights, t.padded);
        for (int64_t row = 0; row < t.queries; row++)
            softmax(weights + row * t.padded, a->causal ? row + 1 : t.keys, t.padded, scale);
        sums(weights, t.padded, 1, t.queries, t.keys, a->kv + t.kv + width, 2 * t.apart, a->wide, a->out + t.q, t.apart);
    }
}

void opencoca_attend_backward(const Attention *a, const Run *runs, int threads) {
    int64_t count = tasks_of(a, runs), width = a->heads * a->wide;
    float scale = 1.0f / sqrtf((float)a->wide);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t number = 0; number < count; number++) {
        float of_scores[MOST * MOST];
        Task t = task_of(a, runs, number);
        const float *weights = a->weights + t.weights, *out = a->out_gradient + t.q;
        const float *q = a->q + t.q, *keys = a->kv + t.kv, *values = keys + width;
        float *of_keys = a->kv_gradient + t.kv, *of_values = of_keys + width;
        dots(out, t.apart, t.queries, values, 2 * t.apart, t.keys, a->wide, of_scores, t.padded);
        for (int64_t row = 0; row < t.queries; row++) {
            float *own = of_scores + row * t.padded;
            const float *share = weights + row * t.padded;
            vec sum = {0};
            for (int64_t s = t.keys; s < t.padded; s++) own[s] = 0;
            for (int64_t s = 0; s < t.padded; s += LANES) sum += load(own + s) * load(share + s);
            float mean = total(sum);
            for (int64_t s = 0; s < t.padded; s += LANES) store(own + s, (load(own + s) - mean) * load(share + s) * scale);
        }
        sums(of_scores, t.padded, 1, t.queries, t.keys, keys, 2 * t.apart, a->wide, a->q_gradient + t.q, t.apart);
        sums(of_scores, 1, t.padded, t.keys, t.queries, q, t.apart, a->wide, of_keys, 2 * t.apart);
        sums(weights, 1, t.padded, t.keys, t.queries, out, t.apart, a->wide, of_values, 2 * t.apart);
    }
}
