// What a launch is given, what programs send to each other, and what a program's warps share.

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
    u64* answer;      // in the host's memory: launches so far << 32 | the most likely next id
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

struct Shared {
    u32 x;                        // [largest K] bf16; outputs of attention when there is no x
    u32 zeros;                    // 64 bytes
    Sums* sums;                   // [2]
    float* small;                 // [16]
    float* turned;                // [D]: cos, sin of the position
    float* reduce;                // [WARPS, 32]
    AttentionShared attention;
};
