// Vectors that all programs need: received word by word, normed, and put where products read them.

constexpr int PER_THREAD = (HIDDEN / 4 + CONSUMERS - 1) / CONSUMERS;  // fours of a vector

template <int FORMAT_>
__device__ __forceinline__ void store_four(u32 x, int four, float a, float b, float c, float d) {
    if (FORMAT_ == 0) {
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(x + 8 * four), "r"(pack(a, b)), "r"(pack(c, d))
                     : "memory");
    } else {  // where 4-bit weights meet it: of eight, 0 4 2 6 1 5 3 7
        const u32 to = x + 16 * (four >> 1) + 2 * (four & 1);
        store_shared_u16(to, to_half(a));
        store_shared_u16(to + 8, to_half(b));
        store_shared_u16(to + 4, to_half(c));
        store_shared_u16(to + 12, to_half(d));
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
        squares = warp_sum(squares);
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
