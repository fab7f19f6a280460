"""Layer-adaptive partitioning of vision models over connected vehicles (LAP-DTR) for ROS 2.

The generated messages live in a second directory of the same package name
(``lapdtr_ros.msg`` of the install space), so the package path is extended: Python then finds
the modules of a source checkout and the built messages side by side.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
__version__ = '0.1.0'
