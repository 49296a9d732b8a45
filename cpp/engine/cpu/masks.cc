#include "engine/cpu/masks.h"

#include "sampling/mask.h"

namespace dlf::cpu {

void Masks::start(const Sequence& sequence) {
  const int64_t positions = sequence.sampling.masked ? sequence.draft.options.max_draft + 1 : 0;
  slots_[sequence.slot].words.resize(positions * mask_words(vocab_));
}

void Masks::begin(const CallMasks& call) {
  call_ = &call;
  for (Slot& slot : slots_) {
    slot.wanted = 0;
  }
}

void Masks::want(Sequence& sequence) {
  Slot& slot = slots_[sequence.slot];
  if (sequence.sampling.masked && slot.wanted <= sequence.draft.size) {
    const std::span<const int64_t> drafted = std::span(sequence.tokens).last(sequence.draft.size);
    int32_t* words = slot.words.data() + slot.wanted * mask_words(vocab_);
    masks_.want(sequence, sequence.unmasked(), drafted, slot.wanted, words, mask_words(vocab_));
    slot.wanted = sequence.draft.size + 1;
  }
}

void Masks::ask() { masks_.ask(*call_); }

const int32_t* Masks::at(const Sequence& sequence, int64_t position) const {
  return sequence.sampling.masked ? slots_[sequence.slot].words.data() + position * mask_words(vocab_) : nullptr;
}

}  // namespace dlf::cpu
