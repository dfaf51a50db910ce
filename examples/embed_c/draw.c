/* Draw one picture with a compiled text-to-image model, from C, through svdq.h alone.
 *
 *   draw MODEL.svdq PROMPT.bin PICTURE.ppm [SEED]
 *
 * PROMPT.bin holds f32 [2, 4, 128]: the words of no prompt, then of the prompt.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "svdq.h"

enum { BATCH = 2, TOKENS = 64, FEATURES = 48, WORDS = 4, WIDTH = 128, STEPS = 20 };
enum { GRID = 8, PATCH = 4, SIDE = GRID * PATCH, ZOOM = 8, NUM_INPUTS = 6 };

static float latents[BATCH][TOKENS * FEATURES], velocity[BATCH][TOKENS * FEATURES];
static float words[BATCH * WORDS * WIDTH], pooled[BATCH * WIDTH], timestep[BATCH];
static float img_ids[TOKENS * 3], txt_ids[WORDS * 3];

static struct {
  svdq_tensor tensor; /* what the model takes or gives, in its dtype */
  float* values;      /* ours */
} inputs[NUM_INPUTS] =
    {
        {{"hidden_states", NULL, 0, 3, {BATCH, TOKENS, FEATURES}}, latents[0]},
        {{"encoder_hidden_states", NULL, 0, 3, {BATCH, WORDS, WIDTH}}, words},
        {{"pooled_projections", NULL, 0, 2, {BATCH, WIDTH}}, pooled},
        {{"timestep", NULL, 0, 1, {BATCH}}, timestep},
        {{"img_ids", NULL, 0, 2, {TOKENS, 3}}, img_ids},
        {{"txt_ids", NULL, 0, 2, {WORDS, 3}}, txt_ids},
    },
  output = {{"sample", NULL, 0, 3, {BATCH, TOKENS, FEATURES}}, velocity[0]};

static void quit(const char* what, const char* which) {
  fprintf(stderr, "%s %s\n", what, which);
  exit(2);
}

static void check(svdq_status status) {
  if (status != SVDQ_OK) quit(svdq_last_error(), "");
}

static size_t count(const svdq_tensor* tensor) {
  size_t total = 1;
  for (int d = 0; d < tensor->ndim; ++d) total *= (size_t)tensor->shape[d];
  return total;
}

/* Models take f32, used where it lies, or bf16, the upper half of an f32, which needs room of its
 * own. */
static void set_dtype(const svdq_model* model, svdq_direction direction, svdq_tensor* tensor,
                      float* values) {
  svdq_port port;
  for (size_t i = 0; svdq_get_port(model, direction, i, &port) == SVDQ_OK; ++i) {
    if (strcmp(port.name, tensor->name) == 0) tensor->dtype = port.dtype;
  }
  tensor->data = tensor->dtype == SVDQ_BF16 ? calloc(count(tensor), 2) : (void*)values;
}

static void narrow(const float* values, svdq_tensor* tensor) {
  if (tensor->dtype != SVDQ_BF16) return;
  for (size_t i = 0; i < count(tensor); ++i) {
    uint32_t word;
    memcpy(&word, &values[i], 4);
    ((uint16_t*)tensor->data)[i] = (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
}

static void widen(const svdq_tensor* tensor, float* values) {
  if (tensor->dtype != SVDQ_BF16) return;
  for (size_t i = 0; i < count(tensor); ++i) {
    const uint32_t word = (uint32_t)((uint16_t*)tensor->data)[i] << 16;
    memcpy(&values[i], &word, 4);
  }
}

static float uniform(uint64_t* state) { /* (0, 1) */
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return ((float)(*state >> 40) + 0.5f) / 16777216.0f;
}

static void write_picture(const char* path) {
  FILE* file = fopen(path, "wb");
  if (file == NULL) quit("cannot write", path);
  fprintf(file, "P6 %d %d 255\n", SIDE * ZOOM, SIDE * ZOOM);
  for (int i = 0; i < SIDE * ZOOM * SIDE * ZOOM; ++i) {
    const int y = i / (SIDE * ZOOM) / ZOOM, x = i % (SIDE * ZOOM) / ZOOM;
    const float* token = latents[0] + (y / PATCH * GRID + x / PATCH) * FEATURES;
    for (int channel = 0; channel < 3; ++channel) {
      const float value = token[(channel * PATCH + y % PATCH) * PATCH + x % PATCH];
      fputc((int)fminf(fmaxf((value + 1) * 127.5f + 0.5f, 0), 255), file);
    }
  }
  if (fclose(file) != 0) quit("cannot write", path);
}

int main(int argc, char** argv) {
  if (argc < 4) quit("usage: draw MODEL.svdq PROMPT.bin PICTURE.ppm", "[SEED]");
  svdq_model* model;
  svdq_session* session;
  check(svdq_open(argv[1], 0, &model));
  check(svdq_session_create(model, NULL, &session));

  FILE* prompt = fopen(argv[2], "rb");
  if (prompt == NULL || fread(words, sizeof words, 1, prompt) != 1)
    quit("not f32 [2, 4, 128]:", argv[2]);
  fclose(prompt);
  for (int i = 0; i < BATCH * WORDS * WIDTH; ++i) {
    pooled[i / (WORDS * WIDTH) * WIDTH + i % WIDTH] += words[i] / WORDS; /* their mean */
  }
  for (int t = 0; t < TOKENS; ++t)
    img_ids[3 * t + 1] = (float)(t / GRID), img_ids[3 * t + 2] = (float)(t % GRID);
  uint64_t state = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
  for (int i = 0; i < TOKENS * FEATURES; ++i) {
    latents[0][i] = sqrtf(-2 * logf(uniform(&state))) * cosf(6.2831853f * uniform(&state));
  }

  set_dtype(model, SVDQ_OUTPUT, &output.tensor, output.values);
  for (int i = 0; i < NUM_INPUTS; ++i)
    set_dtype(model, SVDQ_INPUT, &inputs[i].tensor, inputs[i].values);
  for (int step = 0; step < STEPS; ++step) { /* from noise at t = 1 to the picture at t = 0 */
    memcpy(latents[1], latents[0], sizeof latents[0]);
    timestep[0] = timestep[1] = 1.0f - (float)step / STEPS;
    svdq_tensor given[NUM_INPUTS];
    for (int i = 0; i < NUM_INPUTS; ++i) {
      narrow(inputs[i].values, &inputs[i].tensor);
      given[i] = inputs[i].tensor;
    }
    check(svdq_run(session, given, NUM_INPUTS, &output.tensor, 1));
    widen(&output.tensor, velocity[0]);
    for (int i = 0; i < TOKENS * FEATURES; ++i) { /* away from the picture of no prompt */
      latents[0][i] -= (velocity[0][i] + 2 * (velocity[1][i] - velocity[0][i])) / STEPS;
    }
  }
  write_picture(argv[3]);
  svdq_session_destroy(session);
  svdq_close(model);
  return 0;
}
