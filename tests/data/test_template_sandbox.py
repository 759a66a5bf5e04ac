"""That a chat template from a stranger ends, and takes no memory to speak of."""

import resource
import time

import keras
import pytest

from kerora.data.chat import ChatTemplate
from kerora.data.errors import RowProblem
from kerora.data.formats import Message

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="templates do not depend on the backend"
)
MESSAGES = [Message("user", 'Say "hi" & so on'), Message("assistant", "Hi.")]
NESTED = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLING = "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
HOSTILE = {
    "loops in loops": NESTED,
    "loops over what it wrote": "{% set l = [1] * 9999 %}"
    + "{% for a in l %}" * 3
    + "{% endfor %}" * 3,
    "macros that branch": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "loops that call themselves": "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}"
    "{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a text many times": "{{ 'a' * 10000000000 }}",
    "a list many times": "{{ ([1] * 100000) * 100000 }}",
    "a text doubled": DOUBLING + "{% set n.x = n.x + n.x %}{% endfor %}",
    "a text joined to itself": DOUBLING + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a block in itself": DOUBLING
    + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "much text in a loop": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "a list doubled": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format by number": "{{ '%*d' % (1000000000, 1) }}",
    "a wide format by filter": "{{ '%1000000000d' | format(1) }}",
    "a wide format by method": "{{ '{:1000000000}'.format(1) }}",
    "a format as wide as a number": "{{ '{:{}}'.format(1, 1000000000) }}",
    "centred": "{{ 'a' | center(10000000000) }}",
    "centred by method": "{{ 'a'.center(10000000000) }}",
    "indented": "{{ 'a\nb' | indent(10000000000) }}",
    "JSON indented": "{{ messages | tojson(indent=10000000000) }}",
    "JSON in JSON": "{{ '\"'" + " | tojson" * 60 + " }}",
    "replaced": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replaced by filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "joined": "{{ range(99999) | join('a' * 1000000) }}",
    "joined by method": "{{ ('a' * 1000000).join(['b'] * 99999) }}",
    "batched": "{{ [1] | batch(10000000000, 0) | list }}",
    "sliced": "{{ [1] | slice(10000000000) | list }}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a number squared": "{% set n = namespace(x=9) %}{% for i in range(60) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}",
    "random words": "{{ lipsum(n=100000000) }}",
    "a wide time": "{{ strftime_now('%01000000000d') }}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_templates_end(name):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(RowProblem, match="refused by the chat template"):
        ChatTemplate(HOSTILE[name]).render(MESSAGES)
    assert time.monotonic() - began < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 400


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role ~ ': ' ~ m.content }}"
        "{{ ', ' if not loop.last else '' }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content | trim | upper }}{% else %}-"
        "{% endfor %}",
        "{% for m in messages[::-1] %}{{ loop.previtem.role if loop.previtem }}|{{ m.role }}"
        "{% endfor %}",
        "{% macro f(x, n=2) %}{{ x * n }}{% endmacro %}{{ f('ab') }}{{ f(3, n=4) }}",
        "{{ messages | map(attribute='role') | join(', ') }} {{ messages | join('-', 'role') }}",
        "{{ 'a-b-a' | replace('a', 'c') }}{{ 'a-b-a'.replace('a', 'c', 1) }}{{ '-'.join('abc') }}",
        "{% for k, v in messages[0].items() %}{{ '%s=%s;' % (k, v) }}{% endfor %}",
        "{{ '{}-{:>4}'.format('a', 1) }}",
        "{{ 'a\nb' | indent(2) }}{{ 7 % 3 }}{{ 2 ** 5 }}{{ [1] + [2] }}{{ 1.5 * 2 }}",
        "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}"
        "{% if i == 3 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}",
        "{% for x in [[1, [2, 3]], 4] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}"
        "{{ x }}{% endif %}{% endfor %}",
        "{% set t %}a{{ 1 }}b{% endset %}{{ t | length }}{{ t }}{% filter upper %}c{% endfilter %}",
        "{{ missing is defined }}{{ (messages | list)[-1]['content'][1:] }}{{ none }}{{ true }}",
    ],
)
def test_plain_templates_are_what_jinja_makes_of_them(source):
    import jinja2.sandbox

    theirs = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    entries = [{"role": message.role, "content": message.content} for message in MESSAGES]
    expected = theirs.from_string(source).render(messages=entries)
    assert ChatTemplate(source).render(MESSAGES) == expected
