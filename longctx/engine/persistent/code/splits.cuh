// Around a split of the past: its queries, the newest token, and the merge of warps and of splits.

// Normed and turned queries of this split's group; the last split also makes and stores the newest
// key and value. A warp takes one head; a lane has dimensions lane + 32 i.
__device__ __forceinline__ void prepare_attention(const Arguments& a, const Layer& layer,
                                                  const Split& split, int position, u32 tag,
                                                  const Shared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    constexpr int EACH = D / 32;
    const int last = split.index == SPLITS - 1 ? GROUP + 2 : GROUP;
    for (int item = warp; item < last; item += WARPS) {
        float v[EACH];
        const int head = item < GROUP ? split.head * GROUP + item
                         : item == GROUP ? HEADS + split.head : HEADS + KV_HEADS + split.head;
        const u16* norm = item < GROUP ? layer.query_norm : item == GROUP ? layer.key_norm : nullptr;
        float weights[EACH];  // loaded before the rest is there
#pragma unroll
        for (int i = 0; i < EACH; i++) weights[i] = norm ? widen(norm[lane + 32 * i]) : 0.f;
        receive_bf16(a.state.mixed + head * D + lane, 32, tag, v);
        if (item != GROUP + 1) {
            if (norm) {
                float squares = 0.f;
#pragma unroll
                for (int i = 0; i < EACH; i++) squares += v[i] * v[i];
                squares = warp_sum(squares);
                const float factor = 1.f / sqrtf(squares / D + a.eps);
#pragma unroll
                for (int i = 0; i < EACH; i++) v[i] = v[i] * factor * weights[i];
            }
#pragma unroll
            for (int i = 0; i < EACH / 2; i++) {
                const float cos = shared.turned[lane + 32 * i], sin = shared.turned[D / 2 + lane + 32 * i];
                const float first = v[i], second = v[i + EACH / 2];
                v[i] = first * cos - second * sin;
                v[i + EACH / 2] = second * cos + first * sin;
            }
        }
        if (item < GROUP) {
#pragma unroll
            for (int i = 0; i < EACH; i++)
                store_shared_u16(shared.attention.queries + 2 * (item * D + lane + 32 * i),
                                 PACKED ? narrow_half(v[i]) : narrow(v[i]));
            continue;
        }
        const bool key = item == GROUP;
        float* to = key ? shared.attention.key : shared.attention.value;
        const i64 slot = split.head * a.capacity + position;
        u8* cache = (u8*)(key ? layer.keys : layer.values) + slot * KV_ROW;
        if (KV_MODE == 1) {
            float top = 0.f;
#pragma unroll
            for (int i = 0; i < EACH; i++) top = fmaxf(top, fabsf(v[i]));
            top = warp_max(top);
            const u16 code = narrow_half(fmaxf(top / 127.f, 6e-8f));
            const float scale = widen_half(code), inverse = 1.f / scale;
            if (lane == 0) ((u16*)(key ? layer.key_scales : layer.value_scales))[slot] = code;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const float rounded = fminf(fmaxf(floorf(v[i] * inverse + 0.5f), -127.f), 127.f);
                ((signed char*)cache)[lane + 32 * i] = (signed char)rounded;
                to[lane + 32 * i] = rounded * scale;
            }
        } else {
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                if (KV_MODE == 2) {
                    u16 code;
                    u32 back;
                    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(code) : "f"(0.f), "f"(v[i]));
                    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(back) : "h"(code));
                    cache[lane + 32 * i] = (u8)code;
                    to[lane + 32 * i] = widen_half((u16)back);
                } else {
                    const u16 code = narrow(v[i]);
                    ((u16*)cache)[lane + 32 * i] = code;
                    to[lane + 32 * i] = widen(code);
                }
            }
        }
    }
    consumers_sync();
}

// Scores of the newest token, one warp a head, as part WARPS of the merge.
__device__ __forceinline__ void score_newest(const Arguments& a, bool live, const Shared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float* tops = shared.attention.tops;
    for (int head = warp; head < GROUP; head += WARPS) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            const u16 q = load_shared_u16(shared.attention.queries + 2 * (head * D + lane + 32 * i));
            sum += (PACKED ? widen_half(q) : widen(q)) * shared.attention.key[lane + 32 * i];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            tops[WARPS * 8 + head] = live ? sum * a.scale : NONE;
            tops[(WARPS + 1) * 8 + WARPS * 8 + head] = live ? 1.f : 0.f;
        }
    }
}

// The warps' parts of this split become one, and are sent.
__device__ __forceinline__ void merge_warps(const Arguments& a, const Split& split, u32 tag,
                                            const Shared& shared) {
    const bool newest = split.index == SPLITS - 1;
    const float* tops = shared.attention.tops;
    const float* totals = tops + (WARPS + 1) * 8;
    const i64 base = (i64)(split.head * SPLITS + split.index) * GROUP;
    for (int at = threadIdx.x; at < GROUP * D; at += CONSUMERS) {
        const int head = at / D, d = at % D;
        float top = NONE;
#pragma unroll
        for (int i = 0; i <= WARPS; i++) top = fmaxf(top, tops[i * 8 + head]);
        float sum = 0.f, total = 0.f;
#pragma unroll
        for (int i = 0; i <= WARPS; i++) {
            const float weight = exp2f(tops[i * 8 + head] - top);
            total += weight * totals[i * 8 + head];
            if (i < WARPS) sum += weight * shared.attention.outputs[(i * GROUP + head) * D + d];
            else if (newest) sum += weight * shared.attention.value[d];
        }
        send_f32(a.state.parts + base * D + at, sum, tag);
        if (d == 0) {
            send_f32(a.state.sums + 2 * (base + head), top, tag);
            send_f32(a.state.sums + 2 * (base + head) + 1, total, tag);
        }
    }
}

// The splits' parts become the attended vector, 32 dimensions of a head at a time.
__device__ __forceinline__ void merge_splits(const Arguments& a, u32 tag, const Shared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int chunk = blockIdx.x; chunk < HEADS * D / 32; chunk += PROGRAMS) {
        const int head = chunk / (D / 32), d = chunk % (D / 32) * 32 + lane;
        const i64 base = (i64)(head / GROUP) * SPLITS * GROUP + head % GROUP;
        constexpr int EACH = (SPLITS + WARPS - 1) / WARPS;
        // the largest score and the sum of split `lane`, and this dimension of some splits
        const u64* from[EACH + 2];
        float value[EACH + 2];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int split = warp + i * WARPS;
            from[i] = split < SPLITS ? a.state.parts + (base + split * GROUP) * D + d : nullptr;
        }
        from[EACH] = lane < SPLITS ? a.state.sums + 2 * (base + lane * GROUP) : nullptr;
        from[EACH + 1] = lane < SPLITS ? from[EACH] + 1 : nullptr;
        receive_f32(from, tag, value);
        const float top = lane < SPLITS ? value[EACH] : NONE;
        const float highest = warp_max(top);
        const float weight = exp2f(top - highest);
        const float total = warp_sum(value[EACH + 1] * weight);
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            sum += value[i] * __shfl_sync(~0u, weight, (warp + i * WARPS) & 31);
        shared.reduce[warp * 32 + lane] = sum;
        consumers_sync();
        if (warp == 0) {
            float whole = 0.f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) whole += shared.reduce[i * 32 + lane];
            send_bf16(a.state.attended + head * D + d, whole / total, tag);
        }
        consumers_sync();
    }
}
