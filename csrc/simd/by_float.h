// What SSE2 and NEON, which have no masks, do float by float.
#pragma once

namespace {

GS_INLINE vec load_first(const float* p, int count) {
    float t[kLanes] = {};
    for (int i = 0; i < count; i++) t[i] = p[i];
    return load(t);
}
GS_INLINE void store_first(float* p, vec a, int count) {
    float t[kLanes];
    store(t, a);
    for (int i = 0; i < count; i++) p[i] = t[i];
}
GS_INLINE vec load_lanes(const float* p, unsigned lanes) {
    if (lanes == (1u << kLanes) - 1) return load(p);
    float t[kLanes] = {};
    for (int i = 0; i < kLanes; i++)
        if (lanes >> i & 1) t[i] = p[i];
    return load(t);
}
GS_INLINE void store_lanes(float* p, vec a, unsigned lanes) {
    if (lanes == (1u << kLanes) - 1) return store(p, a);
    float t[kLanes];
    store(t, a);
    for (int i = 0; i < kLanes; i++)
        if (lanes >> i & 1) p[i] = t[i];
}
GS_INLINE vec keep_lanes(vec a, unsigned lanes) {
    float t[kLanes];
    store(t, a);
    return load_lanes(t, lanes);
}
GS_INLINE vec load_between(const float* p, int first, int last, vec outside) {
    float t[kLanes];
    store(t, outside);
    for (int i = first; i < last; i++) t[i] = p[i];
    return load(t);
}

}  // namespace
