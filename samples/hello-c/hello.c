// A Bee in C, from the plain WIT: no SDK, no libc beyond memory. It answers a greeting to whoever sends a name as text.

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "module.h"

typedef exports_skep_bee_handler_outcome_t outcome_t;
typedef exports_skep_bee_handler_input_t input_t;

static const char GREETING[] = "Hello ";
static const size_t NAME_BYTES_MAX = 100;

void exports_skep_bee_handler_bees(exports_skep_bee_handler_list_bee_t *ret) {
    ret->len = 1;
    ret->ptr = malloc(sizeof *ret->ptr);
    if (ret->ptr == NULL) abort();
    module_string_dup(&ret->ptr[0].name, "hello");
}

// The caller's mistake: not tried again.
static void reject(outcome_t *outcome, const char *reason) {
    outcome->disposition.tag = SKEP_BEE_TYPES_DISPOSITION_REJECT;
    module_string_dup(&outcome->disposition.val.reject, reason);
}

static void hello(const skep_bee_types_message_t *message, outcome_t *outcome) {
    size_t name = message->payload.len, greeting = sizeof GREETING - 1;
    if (name == 0 || name > NAME_BYTES_MAX) {
        reject(outcome, "a name has 1 to 100 bytes");
        return;
    }
    uint8_t *said = malloc(greeting + name);
    outcome->respond.ptr = malloc(sizeof *outcome->respond.ptr);
    // Out of memory ends this instance and its message alone.
    if (said == NULL || outcome->respond.ptr == NULL) abort();
    memcpy(said, GREETING, greeting);
    memcpy(said + greeting, message->payload.ptr, name);
    outcome->respond.len = 1;
    outcome->respond.ptr[0].ptr = said;
    outcome->respond.ptr[0].len = greeting + name;
    outcome->disposition.tag = SKEP_BEE_TYPES_DISPOSITION_DONE;
}

void exports_skep_bee_handler_process(
    module_string_t *bee,
    exports_skep_bee_handler_list_input_t *inputs,
    exports_skep_bee_handler_list_outcome_t *ret
) {
    // One outcome an input, in their order; zeroed, so empty lists.
    ret->len = inputs->len;
    ret->ptr = calloc(inputs->len, sizeof *ret->ptr);
    if (ret->ptr == NULL && inputs->len > 0) abort();
    for (size_t i = 0; i < inputs->len; i++) {
        input_t *input = &inputs->ptr[i];
        // Each message is a step: what is done to state belongs to it.
        skep_bee_step_begin((uint32_t)i);
        if (input->tag == SKEP_BEE_TYPES_INPUT_ONE) {
            hello(&input->val.one, &ret->ptr[i]);
        } else {
            reject(&ret->ptr[i], "this Bee takes messages, neither timers nor joins");
        }
    }
    module_string_free(bee);
    exports_skep_bee_handler_list_input_free(inputs);
}
