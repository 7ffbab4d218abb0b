// Hash tables of newer Abseils poison their free slots where they are compiled with the address sanitizer, and Debian's
// library, which is compiled without it, fills slots and leaves them poisoned. So nobody's own poisoning counts; freed and
// foreign memory is found as ever.
extern "C" const char* __asan_default_options() { return "allow_user_poisoning=0"; }
