from hypothesis import settings

# No deadline: a machine may be busy. The same examples every time: what CI says can be repeated.
settings.register_profile("orderscope", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("orderscope")
