// One token through the whole model in one launch: PROGRAMS programs of PRODUCERS warps, which stream
// weights and KV cache through shared memory without a pause, and WARPS consumer warps, which meet
// all other programs' wherever a layer needs the whole vector. What is streamed does not depend on
// the token, so memory is busy while they meet.

struct State {
    i64* token;       // in: the id that is fed; out: the most likely next one
    i64* position;    // in: its position; out: the next
    i64* following;   // out: the most likely next id
    float* logits;    // [VOCAB]
    u16* stream;      // [HIDDEN] bf16, between the layers
    u16* mixed;       // [(HEADS + 2 KV_HEADS) D] bf16
    float* parts;     // [KV_HEADS, SPLITS, GROUP, D]
    float* sums;      // [KV_HEADS, SPLITS, GROUP, 2]: largest score, sum
    u16* attended;    // [HEADS D] bf16
    u16* active;      // [INTER] bf16
    u64* best;        // [PROGRAMS, BATCH / 2]
    u64* meetings;    // [2]: arrivals so far, arrivals before this launch
};

struct Arguments {
    const u16* embed;
    const u8* head;
    const u16* norm;
    const float* frequencies;
    i64 capacity;
    float rope_factor, eps, scale;  // scale of the scores, times log2(e)
    State state;
};

typedef Matrix<HIDDEN, QKV_ROWS, QKV_TILE, QKV_SLICE, false, WEIGHT_FORMAT> Qkv;
typedef Matrix<HEADS * D, HIDDEN, O_TILE, O_SLICE, false, WEIGHT_FORMAT> Out;
typedef Matrix<HIDDEN, INTER, GATE_UP_TILE, GATE_UP_SLICE, true, WEIGHT_FORMAT> GateUp;
typedef Matrix<INTER, HIDDEN, DOWN_TILE, DOWN_SLICE, false, WEIGHT_FORMAT> Down;
typedef Matrix<HIDDEN, VOCAB, HEAD_TILE, HEAD_SLICE, false, 0> Head;

__device__ __forceinline__ void produce(const Arguments& a, const Ring& ring) {
    Turn turn;
    const u64 policy = read_once();
    const Split split((int)load_u64(a.state.position));
    for (int i = 0; i < LAYERS; i++) {
        const Layer& layer = layers[i];
        stream<Qkv>(ring, turn, layer.qkv, policy);
        stream_cache(ring, turn, layer, split, a.capacity, policy);
        stream<Out>(ring, turn, layer.o, policy);
        stream<GateUp>(ring, turn, layer.gate_up, policy);
        stream<Down>(ring, turn, layer.down, policy);
    }
    const Weights head = {a.head, nullptr, nullptr};
    stream<Head>(ring, turn, head, policy);
}

struct Shared {
    u32 x;                        // [largest K] bf16; outputs of attention when there is no x
    u32 zeros;                    // 64 bytes
    Sums* sums;                   // [2]
    float* small;                 // [16]
    float* turned;                // [D]: cos, sin of the position
    float* reduce;                // [WARPS, 32]
    AttentionShared attention;
};

constexpr int PER_THREAD = (HIDDEN / 2 + CONSUMERS - 1) / CONSUMERS;

// x = RMSNorm(stream): `weights` were loaded before the programs met.
struct Normed {
    u32 weights[PER_THREAD];
    __device__ __forceinline__ Normed(const u16* norm) {
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const int at = threadIdx.x + i * CONSUMERS;
            weights[i] = at < HIDDEN / 2 ? ((const u32*)norm)[at] : 0;
        }
    }
    template <int FORMAT_>
    __device__ __forceinline__ void store(const u16* from, float eps, const Shared& shared) const {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        u32 values[PER_THREAD];
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const int at = threadIdx.x + i * CONSUMERS;
            values[i] = at < HIDDEN / 2 ? load_u32(from + 2 * at) : 0;
        }
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            squares += low(values[i]) * low(values[i]) + high(values[i]) * high(values[i]);
#pragma unroll
        for (int offset = 16; offset; offset >>= 1) squares += __shfl_xor_sync(~0u, squares, offset);
        if (lane == 0) shared.small[warp] = squares;
        consumers_sync();
        float total = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) total += shared.small[i];
        const float factor = 1.f / sqrtf(total / HIDDEN + eps);
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const int at = threadIdx.x + i * CONSUMERS;
            if (at >= HIDDEN / 2) continue;
            const float first = low(values[i]) * factor * low(weights[i]);
            const float second = high(values[i]) * factor * high(weights[i]);
            if (FORMAT_ == 0) {
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared.x + 4 * at), "r"(pack(first, second))
                             : "memory");
            } else {
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared.x + 2 * place<FORMAT_>(2 * at)),
                             "h"(to_half(first)) : "memory");
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared.x + 2 * place<FORMAT_>(2 * at + 1)),
                             "h"(to_half(second)) : "memory");
            }
        }
        consumers_sync();
    }
};

// x = a vector that the programs wrote, K a multiple of 8.
template <int K, int FORMAT_>
__device__ __forceinline__ void store_vector(const u16* from, const Shared& shared) {
#pragma unroll 4
    for (int at = threadIdx.x; at < K / 8; at += CONSUMERS) {
        uint4 v;
        asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from + 8 * at) : "memory");
        if (FORMAT_ == 1) {
            const uint4 n = v;
            v.x = to_halves(low(n.x), low(n.y)), v.y = to_halves(low(n.z), low(n.w));
            v.z = to_halves(high(n.x), high(n.y)), v.w = to_halves(high(n.z), high(n.w));
        }
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared.x + 16 * at), "r"(v.x),
                     "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
    }
    consumers_sync();
}

// Normed and turned queries of this split's group; the last split also makes and stores the newest
// key and value. A warp takes one head; a lane has dimensions lane + 32 i.
__device__ __forceinline__ void prepare_attention(const Arguments& a, const Layer& layer,
                                                  const Split& split, int position,
                                                  const Shared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    constexpr int EACH = D / 32;
    const int last = split.index == SPLITS - 1 ? GROUP + 2 : GROUP;
    for (int item = warp; item < last; item += WARPS) {
        float v[EACH];
        const int head = item < GROUP ? split.head * GROUP + item
                         : item == GROUP ? HEADS + split.head : HEADS + KV_HEADS + split.head;
#pragma unroll
        for (int i = 0; i < EACH; i++) v[i] = widen(load_u16(a.state.mixed + head * D + lane + 32 * i));
        if (item != GROUP + 1) {
            const u16* norm = item < GROUP ? layer.query_norm : layer.key_norm;
            if (norm) {
                float squares = 0.f;
#pragma unroll
                for (int i = 0; i < EACH; i++) squares += v[i] * v[i];
#pragma unroll
                for (int offset = 16; offset; offset >>= 1)
                    squares += __shfl_xor_sync(~0u, squares, offset);
                const float factor = 1.f / sqrtf(squares / D + a.eps);
#pragma unroll
                for (int i = 0; i < EACH; i++) v[i] = v[i] * factor * widen(norm[lane + 32 * i]);
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
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared.attention.queries +
                                                             2 * (item * D + lane + 32 * i)),
                             "h"(PACKED ? (u16)pack_half(v[i], 0.f) : narrow(v[i])) : "memory");
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
#pragma unroll
            for (int offset = 16; offset; offset >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
            const u16 code = (u16)pack_half(fmaxf(top / 127.f, 6e-8f), 0.f);
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
            u16 q;
            asm volatile("ld.shared.u16 %0, [%1];"
                         : "=h"(q) : "r"(shared.attention.queries + 2 * (head * D + lane + 32 * i))
                         : "memory");
            sum += (PACKED ? widen_half(q) : widen(q)) * shared.attention.key[lane + 32 * i];
        }
#pragma unroll
        for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
        if (lane == 0) {
            tops[WARPS * 8 + head] = live ? sum * a.scale : NONE;
            tops[(WARPS + 1) * 8 + WARPS * 8 + head] = live ? 1.f : 0.f;
        }
    }
}

// The warps' parts of this split become one, in global memory.
__device__ __forceinline__ void merge_warps(const Arguments& a, const Split& split, const Shared& shared) {
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
        a.state.parts[base * D + at] = sum;
        if (d == 0) {
            a.state.sums[2 * (base + head)] = top;
            a.state.sums[2 * (base + head) + 1] = total;
        }
    }
}

// The splits' parts become the attended vector, 32 dimensions of a head at a time.
__device__ __forceinline__ void merge_splits(const Arguments& a, const Shared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int chunk = blockIdx.x; chunk < HEADS * D / 32; chunk += PROGRAMS) {
        const int head = chunk / (D / 32), d = chunk % (D / 32) * 32 + lane;
        const i64 base = (i64)(head / GROUP) * SPLITS * GROUP + head % GROUP;
        float value[(SPLITS + WARPS - 1) / WARPS];
#pragma unroll
        for (int i = 0; i < (SPLITS + WARPS - 1) / WARPS; i++) {
            const int split = warp + i * WARPS;
            value[i] = split < SPLITS ? load_f32(a.state.parts + (base + split * GROUP) * D + d) : 0.f;
        }
        float top = NONE, total = 0.f;
        if (lane < SPLITS) {
            top = load_f32(a.state.sums + 2 * (base + lane * GROUP));
            total = load_f32(a.state.sums + 2 * (base + lane * GROUP) + 1);
        }
        float highest = top;
#pragma unroll
        for (int offset = 16; offset; offset >>= 1)
            highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, offset));
        const float weight = exp2f(top - highest);
        total *= weight;
#pragma unroll
        for (int offset = 16; offset; offset >>= 1) total += __shfl_xor_sync(~0u, total, offset);
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < (SPLITS + WARPS - 1) / WARPS; i++)
            sum += value[i] * __shfl_sync(~0u, weight, (warp + i * WARPS) & 31);
        shared.reduce[warp * 32 + lane] = sum;
        consumers_sync();
        if (warp == 0) {
            float whole = 0.f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) whole += shared.reduce[i * 32 + lane];
            a.state.attended[head * D + d] = narrow(whole / total);
        }
        consumers_sync();
    }
}

__device__ __forceinline__ float silu(float gate) { return gate / (1.f + expf(-gate)); }

// Orders as the values do, and among equals the lower index first.
__device__ __forceinline__ u64 ranked(float value, int index) {
    const u32 bits = __float_as_uint(value);
    const u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ((u64)key << 32) | (0xffffffffu - (u32)index);
}

__device__ __forceinline__ u64 highest(u64 best) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1) {
        const u64 other = __shfl_xor_sync(~0u, best, offset);
        if (other > best) best = other;
    }
    return best;
}

__device__ __forceinline__ void consume(const Arguments& a, const Ring& ring, const Shared& shared) {
    Turn turn;
    const State& s = a.state;
    Grid grid = {s.meetings, load_u64(s.meetings + 1)};
    const int position = (int)load_u64(s.position);
    const u16* token = a.embed + (i64)load_u64(s.token) * HIDDEN;
    const Split split(position);
    for (int i = threadIdx.x; i < 8 * D; i += CONSUMERS)  // rows beyond the group stay zeros
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared.attention.queries + 2 * i), "h"((u16)0)
                     : "memory");
    if (threadIdx.x < D / 2) {
        const float angle = (float)position * a.frequencies[threadIdx.x];
        shared.turned[threadIdx.x] = cosf(angle) * a.rope_factor;
        shared.turned[D / 2 + threadIdx.x] = sinf(angle) * a.rope_factor;
    }
    auto nothing = [](int) { return 0.f; };
    for (int i = 0; i < LAYERS; i++) {
        const Layer& layer = layers[i];
        const u16* before = i ? s.stream : token;
        {
            const Normed normed(layer.input_norm);
            if (i) grid.wait();
            normed.store<WEIGHT_FORMAT>(before, a.eps, shared);
        }
        const u16* bias = layer.qkv_bias;
        product<Qkv>(
            ring, turn, layer.qkv, shared.x, shared.zeros, shared.sums,
            [&](int row) { return bias ? widen(bias[row]) : 0.f; },
            [&](int row, float sum, float, float add) { s.mixed[row] = narrow(sum + add); });
        grid.meet();
        if (split.live) {
            prepare_attention(a, layer, split, position, shared);
            score_newest(a, split.index == SPLITS - 1, shared);
            attend(ring, turn, split, a.scale, shared.attention);
            consumers_sync();
            merge_warps(a, split, shared);
        }
        grid.meet();
        merge_splits(a, shared);
        grid.meet();
        store_vector<Out::K, WEIGHT_FORMAT>(s.attended, shared);
        const u16* out_bias = layer.o_bias;
        product<Out>(
            ring, turn, layer.o, shared.x, shared.zeros, shared.sums,
            [&](int row) { return widen(load_u16(before + row)) + (out_bias ? widen(out_bias[row]) : 0.f); },
            [&](int row, float sum, float, float add) { s.stream[row] = narrow(sum + add); });
        {
            const Normed normed(layer.post_norm);
            grid.meet();
            normed.store<WEIGHT_FORMAT>(s.stream, a.eps, shared);
        }
        product<GateUp>(ring, turn, layer.gate_up, shared.x, shared.zeros, shared.sums, nothing,
                        [&](int row, float gate, float up, float) { s.active[row] = narrow(silu(gate) * up); });
        grid.meet();
        store_vector<Down::K, WEIGHT_FORMAT>(s.active, shared);
        product<Down>(
            ring, turn, layer.down, shared.x, shared.zeros, shared.sums,
            [&](int row) { return widen(load_u16(s.stream + row)); },
            [&](int row, float sum, float, float add) { s.stream[row] = narrow(sum + add); });
        grid.arrive();
    }
    {
        const Normed normed(a.norm);
        grid.wait();
        normed.store<0>(s.stream, a.eps, shared);
    }
    u64 best = 0;
    const Weights head = {a.head, nullptr, nullptr};
    product<Head>(ring, turn, head, shared.x, shared.zeros, shared.sums, nothing, [&](int row, float sum, float, float) {
        s.logits[row] = sum;
        const u64 rank = ranked(sum, row);
        if (rank > best) best = rank;
    });
    best = highest(best);
    if ((threadIdx.x & 31) == 0 && threadIdx.x < 16 * BATCH)  // the warps that finish rows
        s.best[blockIdx.x * (BATCH / 2) + threadIdx.x / 32] = best;
    grid.arrive();
    if (blockIdx.x) return;
    grid.wait();
    if (threadIdx.x < 32) {
        best = 0;
        for (int i = threadIdx.x; i < PROGRAMS * (BATCH / 2); i += 32) {
            const u64 other = load_u64(s.best + i);
            if (other > best) best = other;
        }
        best = highest(best);
        if (threadIdx.x == 0) {
            const i64 chosen = (i64)(0xffffffffu - (u32)best);
            *s.following = chosen;
            *s.token = chosen;
            *s.position = position + 1;
            s.meetings[1] = grid.goal;
        }
    }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32 * PRODUCERS, 1) decode_token(const Arguments a) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(16) u8 queries[8 * D * 2];
    __shared__ Sums sums[2];
    __shared__ __align__(16) u32 zeros[16];
    __shared__ float small[16], turned[D];
    __shared__ float tops[2 * (WARPS + 1) * 8], key[D], value[D];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    const u32 base = shared_address(memory);
    const Ring ring = {base, shared_address(barriers), shared_address(barriers + STAGES)};
    if (threadIdx.x < 16) zeros[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full + 8 * i, PRODUCERS);
            barrier_init(ring.empty + 8 * i, MEMBERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        produce(a, ring);
        return;
    }
    Shared shared;
    shared.x = base + STAGES * STAGE_BYTES;
    shared.zeros = shared_address(zeros);
    shared.sums = sums;
    shared.small = small;
    shared.turned = turned;
    shared.reduce = (float*)sums;  // not at the same time
    shared.attention.queries = shared_address(queries);
    shared.attention.outputs = (float*)(memory + STAGES * STAGE_BYTES);
    shared.attention.tops = tops;
    shared.attention.key = key;
    shared.attention.value = value;
    consume(a, ring, shared);
}
