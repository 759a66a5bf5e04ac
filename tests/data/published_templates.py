"""Chat templates as the named models write them, without the parts that these tests do not reach.

Each has a way of its own that makes the assistant's turns hard to find. Where there is a twin whose
name starts with `MARKED_`, it says itself what the assistant writes, and is the same template but
for these marks.
"""


def unmarked(source: str) -> str:
    """The template without its `{% generation %}` marks."""
    return source.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")


# Thinking stays in the turns after the last question alone; the last turn of all always has it.
MARKED_QWEN3 = """\
{%- set ns = namespace(query=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' and not (m.content.startswith('<tool_response>') and \
m.content.endswith('</tool_response>')) %}{% set ns.query = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{ '\\n' ~ tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role in ['user', 'system'] %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if not thought and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.query and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {%- if content or not loop.first %}{{ '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}\
{% endif %}
{%- endif %}"""
QWEN3 = unmarked(MARKED_QWEN3)

# Words and calls in one turn, every call and result between marks of its own.
MARKED_QWEN25 = """\
{%- if tools %}
    {{- '<|im_start|>system\\nYou are Qwen.\\n\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- m.content or '' }}
        {%- for call in m.tool_calls or [] %}
            {%- if m.content or not loop.first %}{{ '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
QWEN25 = unmarked(MARKED_QWEN25)

# The last result of all is closed with one line break less than one that an answer follows; a turn
# that calls leaves its words out.
MARKED_HERMES = """\
{{- bos_token }}
{%- if tools %}{{ '<|im_start|>system\\n<tools>' + tools | tojson + '</tools><|im_end|>\\n' }}\
{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
            {%- if not loop.last %}{{ '\\n' }}{% endif %}
        {%- else %}{{ m.content }}{% endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>tool\\n' }}{% endif %}
        {{- '<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if not loop.last %}{{ '\\n' }}{% endif %}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>' }}{% endif %}
    {%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HERMES = unmarked(MARKED_HERMES)

# The system's text and the tools stand before the last question; there is no generation prompt.
MISTRAL = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {%- if m == (turns | selectattr('role', 'equalto', 'user') | list | last) %}
            {%- if tools %}
                {{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
            {%- endif %}
            {{- '[INST]' + (system + '\\n\\n' if system is defined else '') }}
            {{- m.content + '[/INST]' }}
        {%- else %}
            {{- '[INST]' + m.content + '[/INST]' }}
        {%- endif %}
    {%- elif m.tool_calls is defined %}
        {{- '[TOOL_CALLS]' + m.tool_calls | tojson + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

# Every text ends with the end token, whoever spoke last.
PHI3 = """\
{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# A call stands alone in its turn; content is trimmed; results are written as JSON.
MARKED_LLAMA31 = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {{- m.content | tojson + '<|eot_id|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('One call a turn!') }}{% endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- generation %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
        {{- '<|eot_id|>' }}
        {%- endgeneration %}
    {%- elif m.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- generation %}{{- m.content | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
        {%- if tools and loop.first %}{{ tools | tojson(indent=4) }}{% endif %}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
LLAMA31 = unmarked(MARKED_LLAMA31)

# As libraries mark ChatML for training.
MARKED_CHATML = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}
            {{- m.content }}
            {%- for call in m.tool_calls or [] %}{{ '<tool_call>' + call | tojson }}{% endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Harmony: the last turn of all ends with another mark, and only it is written with its thinking.
GPT_OSS = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json' }}
        {{- '<|message|>' + call.arguments | tojson + '<|call|>' }}
    {%- elif m.role == 'assistant' and loop.last and not add_generation_prompt %}
        {%- if m.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary' }}
        {{- '<|message|>' + m.content | tojson + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# A prompt starts to think, and what is written down holds no thinking.
DEEPSEEK_R1 = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'system' %}{{ m.content }}
    {%- elif m.role == 'user' %}{{ '<\uff5cUser\uff5c>' + m.content }}
    {%- else %}
        {{- '<\uff5cAssistant\uff5c>' + m.content.split('</think>')[-1] }}
        {{- '<\uff5cend\u2581of\u2581sentence\uff5c>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}"""

# Whoever spoke last, a turn of the assistant's is opened; turns end with the end token. A turn that
# calls holds a plan in the place of words, calls are numbered through, results stand in one turn.
MARKED_COMMAND_R7B = """\
{%- macro number_of(id) %}
    {%- set ns = namespace(count=0, found=false) %}
    {%- for m in messages %}{% for call in m.tool_calls or [] %}
        {%- if call.id == id and not ns.found %}{{ ns.count }}{% set ns.found = true %}{% endif %}
        {%- set ns.count = ns.count + 1 %}
    {%- endfor %}{% endfor %}
{%- endmacro %}
{%- macro result(m) %}
    {{- '    {\\n        "tool_call_id": "' + number_of(m.tool_call_id) + '",\\n' }}
    {{- '        "results": {\\n            "0": ' + m.content | tojson + '\\n        },\\n' }}
    {{- '        "is_error": null\\n    }' }}
{%- endmacro %}
{{- bos_token }}
{%- set ns = namespace(calls=0) %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># System Preamble\\n' }}
{%- if tools %}
    {{- '4. Response: then write <|START_RESPONSE|>. When you finish, close it out with ' }}
    {{- '<|END_RESPONSE|>.\\n\\n## Available Tools\\n```json\\n[\\n' }}
    {%- for tool in tools %}
        {{- '    {"name": "' + tool.function.name + '", "responses": null}' }}
        {{- '\\n' if loop.last else ',\\n' }}
    {%- endfor %}
    {{- ']\\n```\\n\\n' }}
{%- endif %}
{{- '# Default Preamble\\n- Your name is Command.' }}
{%- if messages and messages[0].role == 'system' %}
    {{- '\\n\\n# Developer Preamble\\n' + messages[0].content }}
{%- endif %}
{{- eos_token }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
        {%- generation %}
        {%- if m.tool_calls %}
            {{- '<|START_THINKING|>' ~ m.tool_plan ~ '<|END_THINKING|><|START_ACTION|>[\\n' }}
            {%- for call in m.tool_calls %}
                {{- '    {"tool_call_id": "' ~ ns.calls ~ '", "tool_name": "' }}
                {{- call.function.name + '", "parameters": ' + call.function.arguments | tojson }}
                {{- '}\\n' if loop.last else '},\\n' }}
                {%- set ns.calls = ns.calls + 1 %}
            {%- endfor %}
            {{- ']<|END_ACTION|>' + eos_token }}
        {%- else %}
            {{- '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' + eos_token }}
        {%- endif %}
        {%- endgeneration %}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}
            {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[\\n' }}
        {%- endif %}
        {{- result(m) }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '\\n]<|END_TOOL_RESULT|>' + eos_token }}
        {%- else %}{{ ',\\n' }}{% endif %}
    {%- elif m.role == 'user' or not loop.first %}
        {{- '<|START_OF_TURN_TOKEN|><|' + m.role | upper + '_TOKEN|>' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"""
COMMAND_R7B = unmarked(MARKED_COMMAND_R7B)

# Every text ends with an instruction of the system's, which is not there once an answer follows; a
# turn that calls has no mark that ends it.
COMMAND_R_TOOLS = """\
{{- bos_token + '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Safety Preamble' + eos_token }}
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls is defined %}
        {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + (m.content or '') | trim }}
        {{- '\\nAction:\\n```json\\n[\\n' }}
        {%- for call in m.tool_calls %}
            {{- '    {\\n        "tool_name": "' + call.function.name + '",\\n' }}
            {{- '        "parameters": ' + call.function.arguments | tojson + '\\n    }' }}
            {%- if not loop.last %}{{ ',\\n' }}{% endif %}
        {%- endfor %}
        {{- '\\n]```\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\\n' + m.content | trim }}
        {{- '</results>' + eos_token }}
    {%- else %}
        {{- '<|START_OF_TURN_TOKEN|>' }}
        {{- '<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|USER_TOKEN|>' }}
        {{- m.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write \\'Action:\\' followed by a list.' + eos_token }}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

# Results of tools are closed once something follows; a prompt is written as if they never were.
UNCLOSED = """\
{% for m in messages %}{{ '<' + m.role + '>' + m.content }}\
{% if not loop.last %}{{ '</' + m.role + '>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

# Whoever spoke last, a turn of the assistant's is opened.
ALWAYS_OPEN = """\
{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}\
{{ '<|assistant|>' }}"""

# Prompts say more than marks; what is written down does not.
WORDS_IN_PROMPT = """\
{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>Well, ' }}{% endif %}"""

# What is written down says more than prompts, and it is no mark.
WORDS_IN_TEXT = """\
{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{{ 'Well, ' }}\
{% endif %}{{ m.content + '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"""

# The last turn of all goes on after what ends the others.
LAST_WORDS = """\
{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}\
{% if loop.last and m.role == 'assistant' %}{{ 'Goodbye' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

# As before, with words among what opens a turn.
ALWAYS_OPEN_WORDS = """\
{% for m in messages %}{{ '<|start|>' + m.role + '\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
{{ '<|start|>assistant\\n' }}"""
