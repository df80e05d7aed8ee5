/* Vectors of float32 as wide as the processor's registers. */

#include <stdint.h>

#include <immintrin.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_anywhere __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec load(const float *from) { return *(const vec_anywhere *)from; }

INLINE void store(float *to, vec x) { *(vec_anywhere *)to = x; }

INLINE vec chosen(ints mask, vec yes, vec no) { return (vec)((mask & (ints)yes) | (~mask & (ints)no)); }

/* Four numbers whose sum is that of all lanes. */
INLINE __m128 quarter(vec x) {
#if LANES == 16
    __m512 wide = (__m512)x;
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(wide), _mm512_extractf32x8_ps(wide, 1));
#else
    __m256 half = (__m256)x;
#endif
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* e^x to 2 units in the last place; 0 below -87, where float32 ends. */
INLINE vec exponential(vec x) {
    ints gone = x < all(-87.0f);
    x = chosen(gone, all(-87.0f), x);
    x = chosen(x > all(88.0f), all(88.0f), x);
    vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the fraction is rounded away */
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693145752f - n * 1.42860677e-6f;
    vec p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ints power = ((ints)shifted - 0x4B400000 + 127) << 23;
    return (vec)(~gone & (ints)(p * (vec)power));
}
