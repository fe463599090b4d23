// What every instruction set but AVX-512 does through an array in memory, or with plain arithmetic in its place.
#pragma once

namespace {

GS_INLINE void accumulate(vec& sum, vec a, vec b) { sum = fma(a, b, sum); }
GS_INLINE vec broadcast_now(const char* p) { return pin(broadcast(*reinterpret_cast<const float*>(p))); }
template <int scale, int bytes>
GS_INLINE vec load_now(const char* base, int64_t index) {
    return pin(load(reinterpret_cast<const float*>(base + scale * index + bytes)));
}

GS_INLINE vec pick(const float* p, const int32_t* index, int count) {
    float t[kLanes];
    for (int i = 0; i < kLanes; i++) t[i] = i < count && index[i] >= 0 ? p[index[i]] : 0.0f;
    return load(t);
}

GS_INLINE void transpose(vec r[kLanes]) {
    float a[kLanes * kLanes], b[kLanes * kLanes];
    for (int i = 0; i < kLanes; i++) store(a + i * kLanes, r[i]);
    for (int i = 0; i < kLanes; i++)
        for (int j = 0; j < kLanes; j++) b[j * kLanes + i] = a[i * kLanes + j];
    for (int i = 0; i < kLanes; i++) r[i] = load(b + i * kLanes);
}

template <int N>
GS_INLINE void sum_each(const vec* a, float* to) {
#pragma GCC unroll 32
    for (int i = 0; i < N; i++) to[i] = sum(a[i]);
}

GS_INLINE void interleave(vec even, vec odd, vec& a, vec& b) {
    float t[2 * kLanes], e[kLanes], o[kLanes];
    store(e, even);
    store(o, odd);
    for (int i = 0; i < kLanes; i++) t[2 * i] = e[i], t[2 * i + 1] = o[i];
    a = load(t);
    b = load(t + kLanes);
}

GS_INLINE void store_spread(float* p, vec a, int count) {
    float t[kLanes];
    store(t, a);
    for (int i = 0; i < count; i++) p[2 * i] = t[i];
}

GS_INLINE void store_bytes(uint8_t* p, vec a, int count) {
    if (count == kLanes) return all_bytes(p, a);
    uint8_t t[kLanes];
    all_bytes(t, a);
    for (int i = 0; i < count; i++) p[i] = t[i];
}

}  // namespace
