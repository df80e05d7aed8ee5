/* GELU of a linear layer's outputs with its bias, and the gradients, each in one pass, for training on a processor.
 *
 * opencoca/model/gelu_native.py calls this; it is tested against torch. Everything is float32.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "vectors.h"

#define BLOCKS 32 /* of rows, whose biases' gradients are summed apart: the bits don't depend on the threads */

int64_t opencoca_gelu_interface(void) { return 1000000 + BLOCKS; }

INLINE vec smaller(vec a, vec b) {
#if LANES == 16
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#endif
}

/* The normal distribution's share below x, to 1.5e-7, and e^(-x^2 / 2).
 *
 * Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, of x / sqrt(2). */
INLINE vec share_below(vec x, vec *bell) {
    vec size = (vec)((ints)x & 0x7FFFFFFF);
    vec t = 1.0f / (1.0f + 0.231641888f * size);
    vec p = t * 0.5307027145f - 0.7265760135f; /* half of each coefficient */
    p = p * t + 0.7107068705f;
    p = p * t - 0.142248368f;
    p = p * t + 0.127414796f;
    vec power = smaller(0.5f * size * size, all(87.0f)) * -1.44269504f; /* of 2 */
    vec shifted = power + 12582912.0f;                                  /* 1.5 * 2^23: the fraction is rounded away */
    vec r = power - (shifted - 12582912.0f);
    vec e = all(1.53533e-4f); /* 2^r for |r| <= 1/2 */
    e = e * r + 1.3398874e-3f;
    e = e * r + 9.6184373e-3f;
    e = e * r + 5.5503324e-2f;
    e = e * r + 0.24022648f;
    e = e * r + 0.69314720f;
    e = e * r + 1.0f;
    *bell = (vec)((ints)e + (((ints)shifted - 0x4B400000) << 23));
    vec beyond = p * t * *bell;
    vec below = 0.5f - beyond; /* of the half on x's side */
    return 0.5f + (vec)((ints)below | ((ints)x & (int32_t)0x80000000));
}

INLINE vec gelu_of(vec x, vec gradient, int backward) {
    vec bell, share = share_below(x, &bell);
    return backward ? gradient * (share + x * 0.39894228f * bell) : x * share;
}

/* The last numbers of a row, fewer than a vector has. */
INLINE vec some(const float *from, int64_t count) {
    float numbers[LANES] = {0};
    memcpy(numbers, from, count * sizeof(float));
    return load(numbers);
}

/* to [rows, width]: GELU of x + bias where `sums` is NULL. Else the gradient of x, and `sums` [BLOCKS, width] is room
 * for the bias's gradient, which is its first row afterwards. */
void opencoca_bias_gelu(const float *x, const float *bias, const float *gradient, float *to, float *sums, int64_t rows,
                        int64_t width, int threads) {
    int64_t whole = width / LANES * LANES, rest = width - whole;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < BLOCKS; block++) {
        float *sum = sums + block * width;
        if (sums) memset(sum, 0, width * sizeof(float));
        for (int64_t row = rows * block / BLOCKS; row < rows * (block + 1) / BLOCKS; row++) {
            const float *in = x + row * width, *g = gradient + row * width;
            float *out = to + row * width;
            if (sums) {
                for (int64_t i = 0; i < whole; i += LANES) {
                    vec y = gelu_of(load(in + i) + load(bias + i), load(g + i), 1);
                    store(out + i, y);
                    store(sum + i, load(sum + i) + y);
                }
            } else
                for (int64_t i = 0; i < whole; i += LANES)
                    store(out + i, gelu_of(load(in + i) + load(bias + i), (vec){0}, 0));
            if (rest) {
                float last[LANES];
                store(last, gelu_of(some(in + whole, rest) + some(bias + whole, rest),
                                    sums ? some(g + whole, rest) : (vec){0}, sums != NULL));
                memcpy(out + whole, last, rest * sizeof(float));
                for (int64_t i = 0; sums && i < rest; i++) sum[whole + i] += last[i];
            }
        }
    }
    for (int64_t block = 1; sums && block < BLOCKS; block++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[block * width + i];
}
