// Checks one pack: its footer, and with `read_data` every frame and every block's id.
#pragma once

#include <cstdint>

#include "store/repository_state.h"
#include "store/verify/damage.h"

namespace still::store {

// Gives the number of blocks read. What is broken goes to `damage`; a pack that is gone since it was listed is not.
uint64_t CheckPack(RepositoryState& state, const PackName& name, bool read_data, Damage& damage, Scratch& scratch);

}  // namespace still::store
