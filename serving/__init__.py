"""The HTTP side of the service, which service.py hands to BentoML: routes, uploads, limits, access. The answers come from pipeline/."""
