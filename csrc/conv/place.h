// Sums that were made elsewhere, to their places in the destination.
#pragma once

#include "conv/layout.h"
#include "conv/problem.h"

namespace gossamer {
namespace {

// Rows of one destination plane from `from` (row pitch `pitch`) to their places.
void place_rows(const Gather& g, const float* from, i64 pitch, i64 y0, i64 rows, float* plane) {
    for (i64 y = 0; y < rows; y++, from += pitch) {
        float* to = plane + ((y0 + y) * g.dst_step_y + g.dst_y) * g.dst_w + g.dst_x;
        if (g.dst_step_x == 1)
            copy(to, from, g.cols);
        else if (g.dst_step_x == 2)
            copy_spread(to, from, g.cols);
        else
            for (i64 x = 0; x < g.cols; x++) to[x * g.dst_step_x] = from[x];
    }
}

// Positions x images of `planes` destination planes, from [plane][position][image] to their places, `past` the caches.
void place_batch(const Gather& g, const float* from, i64 group, i64 n0, i64 images, i64 o0, i64 planes, i64 y0, i64 rows, bool past) {
    const i64 positions = rows * g.cols, total = planes * positions, image = g.outputs * g.dst_h * g.dst_w;
    const bool dense = g.dst_step_x == 1 && g.dst_step_y == 1 && (rows == g.dst_h || planes == 1) && g.cols == g.dst_w;
    float* base = g.dst + n0 * image + o0 * g.dst_h * g.dst_w;
    i64 plane = 0, y = 0, x = 0;  // counted through, since a division for each float would take longer than its sum
    for (i64 m = 0; m < total; m += kLanes) {
        const int count = (int)least(kLanes, total - m);
        i64 place[kLanes];
        for (int i = 0; !dense && i < count; i++) {
            place[i] = (plane * g.dst_h + (y0 + y) * g.dst_step_y + g.dst_y) * g.dst_w + x * g.dst_step_x + g.dst_x;
            if (++x < g.cols) continue;
            x = 0;
            if (++y < rows) continue;
            y = 0;
            plane++;
        }
        for (i64 n = 0; n < images; n += kLanes) {
            vec v[kLanes];
            for (int k = 0; k < kLanes; k++) v[k] = k < count ? load(from + (m + k) * group + n) : zero();
            transpose(v);
            const int lanes = (int)least(kLanes, images - n);
            if (dense) {
                float* to = base + n * image + y0 * g.dst_w + m;
                for (int k = 0; k < lanes; k++) past && count == kLanes ? stream(to + k * image, v[k]) : store_first(to + k * image, v[k], count);
                continue;
            }
            for (int k = 0; k < lanes; k++) {
                float row[kLanes];
                store(row, v[k]);
                float* to = base + (n + k) * image;
                for (int i = 0; i < count; i++) to[place[i]] = row[i];
            }
        }
    }
}

}  // namespace
}  // namespace gossamer
