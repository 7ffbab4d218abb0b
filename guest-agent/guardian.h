// The guardian: a second, tiny process that restarts the agent when it dies, and, when it died in the middle of a
// freeze, thaws the guest if the new agent cannot. Init systems restart services too, but not all guests have one, and
// none of them is quick.
#pragma once

namespace still::agent {

// Forks; returns in the child, which goes on as the agent. The parent stays: it forwards SIGTERM and SIGINT, reaps
// whatever it inherits (it may be process 1), and exits with the child's code when the child ends by itself with code 0
// or was told to. Call before any thread exists.
//
// `on_death` runs in the parent after each unexpected death, before the restart.
void SplitGuardian(void (*on_death)(void* context), void* context);

}  // namespace still::agent
