"""Choose the safety configuration by the model's name, for clients that have no more than a box for the model.

``python model_alias.py [harmless|uncensored|honest]`` asks ``trimtab+harmless``, and the like. The same name works in
LangChain (``ChatOpenAI(model="trimtab+harmless")``), in chat front ends, and wherever such a model is named.
The SDK reads OPENAI_BASE_URL (``http://127.0.0.1:8000/v1``) and OPENAI_API_KEY from the environment.
"""

import os
import sys

from openai import OpenAI

safety = sys.argv[1] if len(sys.argv) > 1 else "harmless"
model = f"{os.environ.get('OPENAI_MODEL', 'trimtab')}+{safety}"
with OpenAI() as client:
    print("offered:", *(offered.id for offered in client.models.list() if "+" in offered.id))
    response = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "How do I tell a friend that I broke her cup?"}],
        max_tokens=64,
    )
print(response.parse().choices[0].message.content)
print("x-trimtab-safety:", response.headers["x-trimtab-safety"])
