"""What one would write first, each in a page: the services that ours is compared with. All read the package's folder from PACKAGE."""
