// One token through the whole model in one launch: PROGRAMS programs of PRODUCERS warps, which stream
// weights and KV cache through shared memory without a pause, and WARPS consumer warps, which send
// what they computed to all other programs wherever a layer needs the whole vector. What is streamed
// does not depend on the token, so memory is busy while they wait for each other.

struct State {
    i64* token;       // in: the id that is fed; out: the most likely next one
    i64* position;    // in: its position; out: the next
    i64* following;   // out: the most likely next id
    float* logits;    // [VOCAB]
    u32* mixed;       // [(HEADS + 2 KV_HEADS) D], words as `send_bf16` makes them, as are
    u32* attended;    // [HEADS D]
    u32* middle;      // [HIDDEN], the stream after attention
    u32* active;      // [INTER]
    u32* stream;      // [HIDDEN], after the layer
    u64* parts;       // [KV_HEADS, SPLITS, GROUP, D], words as `send_f32` makes them, as are
    u64* sums;        // [KV_HEADS, SPLITS, GROUP, 2]: largest score, sum
    u64* best;        // [PROGRAMS, BATCH / 2]: `ranked`, with the launch in the lowest bits
    i64* launches;    // so far
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
    const Split split((int)*a.state.position);
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

constexpr int PER_THREAD = (HIDDEN / 4 + CONSUMERS - 1) / CONSUMERS;  // fours of a vector

template <int FORMAT_>
__device__ __forceinline__ void store_four(u32 x, int four, float a, float b, float c, float d) {
    if (FORMAT_ == 0) {
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(x + 8 * four), "r"(pack(a, b)), "r"(pack(c, d))
                     : "memory");
    } else {  // where 4-bit weights meet it: of eight, 0 4 2 6 1 5 3 7
        const u32 to = x + 16 * (four >> 1) + 2 * (four & 1);
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(to_half(a)) : "memory");
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + 8), "h"(to_half(b)) : "memory");
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + 4), "h"(to_half(c)) : "memory");
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + 12), "h"(to_half(d)) : "memory");
    }
}

// x = RMSNorm(stream): the norm's weights are loaded before the stream is there.
struct Normed {
    uint2 weights[PER_THREAD];
    int have;
    __device__ __forceinline__ Normed(const u16* norm) {
        have = (HIDDEN / 4 - (int)threadIdx.x + CONSUMERS - 1) / CONSUMERS;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            weights[i] = i < have ? ((const uint2*)norm)[threadIdx.x + i * CONSUMERS] : make_uint2(0, 0);
    }
    // from: words with this tag; or plain bf16 (the embedding), if `plain`
    template <int FORMAT_>
    __device__ __forceinline__ void store(const u32* from, const u16* plain, u32 tag, float eps,
                                          const Shared& shared) const {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        uint4 words[PER_THREAD];
        if (plain) {
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) {
                const uint2 two = i < have ? ((const uint2*)plain)[threadIdx.x + i * CONSUMERS] : make_uint2(0, 0);
                words[i] = make_uint4(two.x << 16, two.x, two.y << 16, two.y);
            }
        } else {
            receive_fours(from + 4 * threadIdx.x, 4 * CONSUMERS, have, tag, words);
        }
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            if (i < have) {
                const float a = high(words[i].x), b = high(words[i].y), c = high(words[i].z), d = high(words[i].w);
                squares += a * a + b * b + c * c + d * d;
            }
#pragma unroll
        for (int offset = 16; offset; offset >>= 1) squares += __shfl_xor_sync(~0u, squares, offset);
        if (lane == 0) shared.small[warp] = squares;
        consumers_sync();
        float total = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) total += shared.small[i];
        const float factor = 1.f / sqrtf(total / HIDDEN + eps);
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            if (i < have)
                store_four<FORMAT_>(shared.x, threadIdx.x + i * CONSUMERS,
                                    high(words[i].x) * factor * low(weights[i].x),
                                    high(words[i].y) * factor * high(weights[i].x),
                                    high(words[i].z) * factor * low(weights[i].y),
                                    high(words[i].w) * factor * high(weights[i].y));
        consumers_sync();
    }
};

// x = a vector that the programs send.
template <int K, int FORMAT_>
__device__ __forceinline__ void store_vector(const u32* from, u32 tag, const Shared& shared) {
    constexpr int AT_ONCE = 5;  // fours of a thread under way
    for (int at = threadIdx.x; at < K / 4; at += AT_ONCE * CONSUMERS) {
        uint4 words[AT_ONCE];
        const int have = min(AT_ONCE, (K / 4 - at + CONSUMERS - 1) / CONSUMERS);
        receive_fours(from + 4 * at, 4 * CONSUMERS, have, tag, words);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (i < have)
                store_four<FORMAT_>(shared.x, at + i * CONSUMERS, high(words[i].x), high(words[i].y),
                                    high(words[i].z), high(words[i].w));
    }
    consumers_sync();
}

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
#pragma unroll
                for (int offset = 16; offset; offset >>= 1)
                    squares += __shfl_xor_sync(~0u, squares, offset);
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
        float total = value[EACH + 1];
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

__device__ __forceinline__ float silu(float gate) { return gate / (1.f + expf(-gate)); }

// Orders as the values do, and among equals the lower index first; the lowest 12 bits are free.
static_assert(VOCAB < 1 << 20, "an id has 20 bits");
__device__ __forceinline__ u64 ranked(float value, int index) {
    const u32 bits = __float_as_uint(value);
    const u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)key << 32 | (u64)(0xfffffu - (u32)index) << 12;
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
    const i64 launch = *s.launches;
    const int position = (int)*s.position;
    const u16* token = a.embed + *s.token * HIDDEN;
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
    u32 tag = (u32)launch * LAYERS;
    for (int i = 0; i < LAYERS; i++) {
        const Layer& layer = layers[i];
        const u16* plain = i ? nullptr : token;
        const u32 last = tag++;
        {
            const Normed normed(layer.input_norm);
            normed.store<WEIGHT_FORMAT>(s.stream, plain, last, a.eps, shared);
        }
        const u16* bias = layer.qkv_bias;
        product<Qkv>(
            ring, turn, layer.qkv, shared.x, shared.zeros, shared.sums,
            [&](int row) { return bias ? widen(bias[row]) : 0.f; },
            [&](int row, float sum, float, float add) { send_bf16(s.mixed + row, sum + add, tag); });
        if (split.live) {
            prepare_attention(a, layer, split, position, tag, shared);
            score_newest(a, split.index == SPLITS - 1, shared);
            attend(ring, turn, split, a.scale, shared.attention);
            consumers_sync();
            merge_warps(a, split, tag, shared);
        }
        consumers_sync();  // what was merged lay where the next vector goes, and sums where parts go
        merge_splits(a, tag, shared);
        store_vector<Out::K, WEIGHT_FORMAT>(s.attended, tag, shared);
        const u16* out_bias = layer.o_bias;
        product<Out>(
            ring, turn, layer.o, shared.x, shared.zeros, shared.sums,
            [&](int row) {
                const float before = plain ? widen(plain[row]) : high(load_u32(s.stream + row));
                return before + (out_bias ? widen(out_bias[row]) : 0.f);
            },
            [&](int row, float sum, float, float add) { send_bf16(s.middle + row, sum + add, tag); });
        {
            const Normed normed(layer.post_norm);
            normed.store<WEIGHT_FORMAT>(s.middle, nullptr, tag, a.eps, shared);
        }
        product<GateUp>(
            ring, turn, layer.gate_up, shared.x, shared.zeros, shared.sums, nothing,
            [&](int row, float gate, float up, float) { send_bf16(s.active + row, silu(gate) * up, tag); });
        store_vector<Down::K, WEIGHT_FORMAT>(s.active, tag, shared);
        product<Down>(
            ring, turn, layer.down, shared.x, shared.zeros, shared.sums,
            [&](int row) { return high(load_u32(s.middle + row)); },
            [&](int row, float sum, float, float add) { send_bf16(s.stream + row, sum + add, tag); });
    }
    {
        const Normed normed(a.norm);
        normed.store<0>(s.stream, nullptr, tag, a.eps, shared);
    }
    u64 best = 0;
    const Weights head = {a.head, nullptr, nullptr};
    product<Head>(ring, turn, head, shared.x, shared.zeros, shared.sums, nothing,
                  [&](int row, float sum, float, float) {
                      s.logits[row] = sum;
                      const u64 rank = ranked(sum, row);
                      if (rank > best) best = rank;
                  });
    const u64 mark = (u64)(launch + 1) & 0xfff;
    best = highest(best);
    if ((threadIdx.x & 31) == 0 && threadIdx.x < 16 * BATCH)  // the warps that finish rows
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(s.best + blockIdx.x * (BATCH / 2) +
                                                                 threadIdx.x / 32),
                     "l"(best | mark) : "memory");
    if (blockIdx.x || threadIdx.x >= 32) return;
    best = 0;
    for (int i = threadIdx.x; i < PROGRAMS * (BATCH / 2); i += 32) {
        u64 other;
        do other = load_u64(s.best + i);
        while ((other & 0xfff) != mark);
        if (other > best) best = other;
    }
    best = highest(best);
    if (threadIdx.x == 0) {  // every program has read these
        const i64 chosen = 0xfffffu - (u32)(best >> 12 & 0xfffff);
        *s.following = chosen;
        *s.token = chosen;
        *s.position = position + 1;
        *s.launches = launch + 1;
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
