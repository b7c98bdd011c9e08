"""Giving data back: whole trees and images, parts of them, or only a look.

A snapshot may come from a site that was broken or taken over, so what it says is checked
before anything is done with it, and nothing is ever written outside of the target.
"""
