/* One decoding step of few rows: the decoder's layers over a cache, in one call and one team of threads.
 *
 * Such a step reads every weight once and computes little with it, so it is bound by reading memory. Weights therefore
 * lie in the order in which they are read: in panels of PANEL outputs, each panel input by input. A panel is read once
 * for up to ROWS rows, whose sums stay in registers. Each sum runs over the inputs in their order, so a row's bits do
 * not depend on how many rows there are, nor on the number of threads.
 *
 * Shapes and meanings are those of opencoca/model/decode_step.py, which is what calls this (opencoca/model/decode_native.py)
 * and what it is tested against. Compiled once per instruction set, see setup.py. Everything is float32.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "vectors.h"

#if LANES == 16
#define ROWS 12 /* 24 of 32 registers hold sums */
#else
#define ROWS 6 /* 12 of 16 */
#endif
#define PANEL (2 * LANES)
#define STRETCH 4               /* vectors of a head that are read at once, */
#define READERS (ROWS / 3)      /* by as many rows */
#define AHEAD 2048 /* bytes of a panel that are asked for before they are needed */

/* What Python fills in: the same fields in the same order are in opencoca/model/decode_native.py. */
typedef struct {
    const float *weight; /* in panels; NULL: there is no such product */
    const float *bias;   /* may be NULL */
    int64_t inputs, outputs;
} Product;

typedef struct {
    const float *weight; /* NULL: there is no such norm */
    const float *bias;   /* may be NULL */
    double eps;
} Norm;

typedef struct {
    Norm norm;
    Product project, out;
    Norm norm_q, norm_k;
} Attending;

typedef struct {
    Attending past, pictures;
    Norm norm_mlp;
    Product up, down;
    int64_t activation;
} Layer;

typedef struct {
    float *data;
    int64_t picture, head, slot; /* strides, in numbers; those of a head's vector lie side by side */
} View;

typedef struct {
    View keys, values;
    int64_t slots; /* of a picture; of the past, that there is room for */
} Context;

typedef struct {
    int64_t rows, pictures, width, heads, hidden; /* hidden: of the widest MLP */
    int64_t there;                                /* slots of the past, without those of this step */
    const uint8_t *seen;                          /* [pictures, rows / pictures, slots after the step], or NULL: all */
    float *x;                                     /* [rows, width], in and out */
} Step;

enum { GELU, QUICK_GELU, GELU_TANH, PLAIN };
enum { STORE, ADD, PACK };

/* What Python compares before it calls anything: a library left from another version must not be called. */
int64_t opencoca_decode_interface(void) { return 1000000 + sizeof(Layer) + sizeof(Context) + sizeof(Step); }

int64_t opencoca_panel(void) { return PANEL; }

/* Scores of as many slots take so much room: whole vectors, and four to write at once. */
INLINE int64_t padded_slots(int64_t slots) { return (slots + LANES + 3) / LANES * LANES; }

/* The error function to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26. */
INLINE vec error_function(vec x) {
    vec size = (vec)((ints)x & 0x7FFFFFFF);
    vec t = 1.0f / (1.0f + 0.3275911f * size);
    vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec y = 1.0f - p * t * exponential(-x * x);
    return (vec)((ints)y | ((ints)x & (int32_t)0x80000000));
}

INLINE vec activated(vec x, int64_t activation) {
    if (activation == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    if (activation == QUICK_GELU) return x / (1.0f + exponential(x * -1.702f));
    if (activation == GELU_TANH) return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
    return x;
}

/* Rows are read by products in blocks of at most ROWS, each block input by input. */
INLINE int64_t block_rows(int64_t rows) {
    int64_t blocks = (rows + ROWS - 1) / ROWS;
    return (rows + blocks - 1) / blocks;
}

/* Where input 0 of a row lies; the next is `*apart` numbers on. */
INLINE float *packed_row(float *packed, int64_t row, int64_t rows, int64_t inputs, int64_t *apart) {
    int64_t most = block_rows(rows), first = row / most * most;
    *apart = rows - first < most ? rows - first : most;
    return packed + first * inputs + (row - first);
}

/* The sums of `rows` rows for one panel of outputs. */
INLINE void panel_sums(int rows, int64_t inputs, const float *panel, const float *x, vec sums[][2]) {
    vec s[ROWS][2];
    for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = (vec){0};
    for (int64_t i = 0; i < inputs; i++) {
        for (int line = 0; line < PANEL; line += 16) __builtin_prefetch((const char *)(panel + line) + AHEAD);
        vec a = load(panel), b = load(panel + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            s[r][0] += x[r] * a;
            s[r][1] += x[r] * b;
        }
        panel += PANEL;
        x += rows;
    }
    for (int r = 0; r < rows; r++) sums[r][0] = s[r][0], sums[r][1] = s[r][1];
}

static void sums_of(int64_t rows, int64_t inputs, const float *panel, const float *x, vec sums[][2]) {
    switch (rows) {
#define CASE(n) \
    case n: panel_sums(n, inputs, panel, x, sums); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 12
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

/* Everything below runs in all threads of a team, which share the loops that say so and wait at their ends. */

/* Outputs of packed rows: STOREd in [rows, outputs], ADDed to what is there, or activated and PACKed for a product. */
static void product(const Product *p, const float *packed, int64_t rows, int how, int64_t activation, float *out) {
    int64_t most = block_rows(rows);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < p->outputs; first += PANEL) {
        int64_t count = p->outputs - first < PANEL ? p->outputs - first : PANEL;
        float bias[PANEL] = {0};
        if (p->bias) memcpy(bias, p->bias + first, count * sizeof(float));
        for (int64_t row = 0; row < rows; row += most) {
            int64_t block = rows - row < most ? rows - row : most;
            vec sums[ROWS][2];
            sums_of(block, p->inputs, p->weight + first * p->inputs, packed + row * p->inputs, sums);
            for (int64_t r = 0; r < block; r++) {
                float line[PANEL];
                for (int half = 0; half < 2; half++)
                    store(line + half * LANES, activated(sums[r][half] + load(bias + half * LANES), activation));
                if (how == PACK) {
                    float *to = out + row * p->outputs + first * block + r;
                    for (int64_t o = 0; o < count; o++) to[o * block] = line[o];
                } else {
                    float *to = out + (row + r) * p->outputs + first;
                    if (how == ADD)
                        for (int64_t o = 0; o < count; o++) to[o] += line[o];
                    else
                        memcpy(to, line, count * sizeof(float));
                }
            }
        }
    }
}

INLINE void normed(const float *x, int64_t count, const Norm *norm, float *to, int64_t apart) {
    double total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; i++) total += x[i];
    double mean = total / count;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < count; i++) squares += (x[i] - mean) * (x[i] - mean);
    float scale = (float)(1 / sqrt(squares / count + norm->eps)), middle = (float)mean;
    for (int64_t i = 0; i < count; i++) {
        float value = (x[i] - middle) * scale * norm->weight[i];
        to[i * apart] = norm->bias ? value + norm->bias[i] : value;
    }
}

static void norm_rows(const Step *step, const Norm *norm, float *packed) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < step->rows; row++) {
        int64_t apart;
        float *to = packed_row(packed, row, step->rows, step->width, &apart);
        normed(step->x + row * step->width, step->width, norm, to, apart);
    }
}

/* Dot products of `a` with the four vectors at these offsets. */
INLINE void four_dots(const float *a, const float *b, const int64_t offsets[4], int64_t count, float *to) {
    vec s[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < 4; k++) s[k] += load(a + i) * load(b + offsets[k] + i);
    __m128 q[4];
    for (int k = 0; k < 4; k++) q[k] = quarter(s[k]);
    float sums[4];
    _mm_storeu_ps(sums, _mm_hadd_ps(_mm_hadd_ps(q[0], q[1]), _mm_hadd_ps(q[2], q[3])));
    for (int k = 0; k < 4; k++) {
        to[k] = sums[k];
        for (int64_t rest = i; rest < count; rest++) to[k] += a[rest] * b[offsets[k] + rest];
    }
}

/* What up to READERS rows read of up to STRETCH vectors' width of all values, weighed by their scores. */
INLINE void read_stretch(int readers, int vectors, const float *value, int64_t apart, int64_t slots, const float *scores,
                         int64_t padded, float *to, int64_t wide, int ask) {
    vec s[READERS][STRETCH];
    for (int j = 0; j < readers; j++)
        for (int v = 0; v < vectors; v++) s[j][v] = (vec){0};
    for (int64_t slot = 0; slot < slots; slot++, value += apart) {
        for (int v = 0; ask && v < vectors; v++) __builtin_prefetch(value + 8 * apart + v * LANES);
        for (int v = 0; v < vectors; v++) {
            vec of = load(value + v * LANES);
            for (int j = 0; j < readers; j++) s[j][v] += scores[j * padded + slot] * of;
        }
    }
    for (int j = 0; j < readers; j++)
        for (int v = 0; v < vectors; v++) store(to + j * wide + v * LANES, s[j][v]);
}

/* What rows read of the values, [rows, wide], by scores [rows, padded]. */
static void read_values(int64_t rows, const float *value, int64_t apart, int64_t slots, const float *scores,
                        int64_t padded, float *to, int64_t wide) {
    for (int64_t row = 0; row < rows; row += READERS) {
        int64_t i = 0, readers = rows - row < READERS ? rows - row : READERS;
        const float *own = scores + row * padded;
        float *read = to + row * wide;
        for (; i + STRETCH * LANES <= wide; i += STRETCH * LANES) {
            if (readers == READERS)
                read_stretch(READERS, STRETCH, value + i, apart, slots, own, padded, read + i, wide, row == 0);
            else
                for (int64_t j = 0; j < readers; j++)
                    read_stretch(1, STRETCH, value + i, apart, slots, own + j * padded, padded, read + j * wide + i, wide,
                                 row + j == 0);
        }
        for (int64_t j = 0; i < wide && j < readers; j++) {
            int64_t rest = i;
            for (; rest + LANES <= wide; rest += LANES)
                read_stretch(1, 1, value + rest, apart, slots, own + j * padded, padded, read + j * wide + rest, wide, 0);
            for (; rest < wide; rest++) {
                float s = 0;
                for (int64_t slot = 0; slot < slots; slot++) s += own[j * padded + slot] * value[slot * apart + rest];
                read[j * wide + rest] = s;
            }
        }
    }
}

/* Scores that sum to 1 in place of their logarithms plus anything; those of slots that aren't seen are 0. */
static void softmax(float *scores, int64_t slots, int64_t padded, const uint8_t *sees) {
    vec most = all(-INFINITY), total = {0};
    for (int64_t s = 0; sees && s < slots; s++)
        if (!sees[s]) scores[s] = -INFINITY;
    for (int64_t s = slots; s < padded; s++) scores[s] = -INFINITY;
    for (int64_t s = 0; s < padded; s += LANES) {
        vec these = load(scores + s);
        most = chosen(these > most, these, most);
    }
    float largest = -INFINITY, several[LANES];
    store(several, most);
    for (int i = 0; i < LANES; i++) largest = several[i] > largest ? several[i] : largest;
    for (int64_t s = 0; s < padded; s += LANES) {
        vec e = exponential(load(scores + s) - largest);
        total += e;
        store(scores + s, e);
    }
    float sums[4];
    _mm_storeu_ps(sums, quarter(total));
    float share = 1.0f / ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (int64_t s = 0; s < padded; s += LANES) store(scores + s, load(scores + s) * share);
}

/* One head of a picture's rows: queries [rows of it], each `apart` numbers on; what they read goes to packed rows. */
static void attend(const Step *step, const View *keys, const View *values, int64_t slots, const uint8_t *seen,
                   const float *queries, int64_t apart, const Norm *norm_q, int64_t picture, int64_t head,
                   float *scores, float *packed) {
    int64_t sharing = step->rows / step->pictures, wide = step->width / step->heads, padded = padded_slots(slots);
    const float *key = keys->data + picture * keys->picture + head * keys->head;
    const float *value = values->data + picture * values->picture + head * values->head;
    float scale = 1.0f / sqrtf((float)wide), query[sharing][wide], read[sharing][wide];
    for (int64_t j = 0; j < sharing; j++) {
        if (norm_q->weight)
            normed(queries + j * apart, wide, norm_q, query[j], 1);
        else
            memcpy(query[j], queries + j * apart, wide * sizeof(float));
        for (int64_t i = 0; i < wide; i++) query[j][i] *= scale;
    }
    for (int64_t s = 0; s < slots; s += 4) {
        int64_t offsets[4], last = slots - 1 - s; /* which stands for keys beyond it; softmax drops their scores */
        for (int64_t k = 0; k < 4; k++) offsets[k] = (k < last ? k : last) * keys->slot;
        for (int64_t next = 8; next < 12; next++)
            for (int64_t i = 0; i < wide; i += 16) __builtin_prefetch(key + (s + next) * keys->slot + i);
        for (int64_t j = 0; j < sharing; j++)
            four_dots(query[j], key + s * keys->slot, offsets, wide, scores + j * padded + s);
    }
    for (int64_t j = 0; j < sharing; j++)
        softmax(scores + j * padded, slots, padded, seen ? seen + (picture * sharing + j) * slots : NULL);
    read_values(sharing, value, values->slot, slots, scores, padded, read[0], wide);
    for (int64_t j = 0; j < sharing; j++) {
        int64_t between;
        float *to = packed_row(packed, picture * sharing + j, step->rows, step->width, &between);
        for (int64_t i = 0; i < wide; i++) to[(head * wide + i) * between] = read[j][i];
    }
}

/* To the rows' own past: their keys and values go into the cache, then each row reads what it sees there. */
static void attend_to_past(const Step *step, const Attending *a, const Context *past, const float *projected,
                           float *scores, float *packed) {
    int64_t sharing = step->rows / step->pictures, wide = step->width / step->heads, apart = 3 * step->width;
    int64_t tasks = step->pictures * step->heads;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t picture = task / step->heads, head = task % step->heads;
        const float *queries = projected + picture * sharing * apart + head * wide;
        for (int64_t j = 0; j < sharing; j++) {
            const float *key = queries + j * apart + step->width;
            int64_t slot = step->there + j;
            float *to = past->keys.data + picture * past->keys.picture + head * past->keys.head + slot * past->keys.slot;
            if (a->norm_k.weight)
                normed(key, wide, &a->norm_k, to, 1);
            else
                memcpy(to, key, wide * sizeof(float));
            memcpy(past->values.data + picture * past->values.picture + head * past->values.head +
                       slot * past->values.slot,
                   key + step->width, wide * sizeof(float));
        }
        attend(step, &past->keys, &past->values, step->there + sharing, step->seen, queries, apart, &a->norm_q,
               picture, head, scores, packed);
    }
}

static void attend_to_pictures(const Step *step, const Attending *a, const Context *pictures, const float *projected,
                               float *scores, float *packed) {
    int64_t sharing = step->rows / step->pictures, wide = step->width / step->heads;
    int64_t tasks = step->pictures * step->heads;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t picture = task / step->heads, head = task % step->heads;
        attend(step, &pictures->keys, &pictures->values, pictures->slots, NULL,
               projected + picture * sharing * step->width + head * wide, step->width, &a->norm_q, picture, head, scores,
               packed);
    }
}

static float *numbers(int64_t count) {
    void *found = NULL;
    return posix_memalign(&found, 64, (count > 0 ? count : 1) * sizeof(float)) ? NULL : found;
}

/* All layers, in place in step->x. `past` and `pictures` have one context for each layer. 0, or 1: no memory. */
int opencoca_decode(const Step *step, const Layer *layers, const Context *past, const Context *pictures, int64_t count,
                    int threads) {
    int64_t sharing = step->rows / step->pictures, slots = step->there + sharing;
    for (int64_t l = 0; l < count; l++)
        if (layers[l].pictures.project.weight && pictures[l].slots > slots) slots = pictures[l].slots;
    slots = padded_slots(slots) * sharing;
    float *packed = numbers(step->rows * step->width), *projected = numbers(step->rows * 3 * step->width);
    float *hidden = numbers(step->rows * step->hidden), *scores = numbers(slots * threads);
    int failed = !packed || !projected || !hidden || !scores;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
            float *own = scores + slots * omp_get_thread_num();
            for (int64_t l = 0; l < count; l++) {
                const Layer *layer = layers + l;
                if (layer->past.project.weight) {
                    norm_rows(step, &layer->past.norm, packed);
                    product(&layer->past.project, packed, step->rows, STORE, PLAIN, projected);
                    attend_to_past(step, &layer->past, past + l, projected, own, packed);
                    product(&layer->past.out, packed, step->rows, ADD, PLAIN, step->x);
                }
                if (layer->pictures.project.weight) {
                    norm_rows(step, &layer->pictures.norm, packed);
                    product(&layer->pictures.project, packed, step->rows, STORE, PLAIN, projected);
                    attend_to_pictures(step, &layer->pictures, pictures + l, projected, own, packed);
                    product(&layer->pictures.out, packed, step->rows, ADD, PLAIN, step->x);
                }
                norm_rows(step, &layer->norm_mlp, packed);
                product(&layer->up, packed, step->rows, PACK, layer->activation, hidden);
                product(&layer->down, hidden, step->rows, ADD, PLAIN, step->x);
            }
        }
    }
    free(packed), free(projected), free(hidden), free(scores);
    return failed;
}

/* out [rows, outputs] of x [rows, inputs]. 0, or 1: no memory. */
int opencoca_product(const Product *p, const float *x, int64_t rows, float *out, int threads) {
    float *packed = numbers(rows * p->inputs);
    if (!packed) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            int64_t apart;
            float *to = packed_row(packed, row, rows, p->inputs, &apart);
            for (int64_t i = 0; i < p->inputs; i++) to[i * apart] = x[row * p->inputs + i];
        }
        product(p, packed, rows, STORE, PLAIN, out);
    }
    free(packed);
    return 0;
}
