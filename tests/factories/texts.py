"""Texts as recognisers give them, in many scripts, for property tests."""

import unicodedata

from hypothesis import strategies as st

SENTENCES = {
    "en": "My well-known mother-in-law is twenty-three, isn't she? That's a state-of-the-art e-mail.",
    "abbreviations": "The U.S.A. and the U.K. paid $23.50, i.e. 3% of £1,250 — or €5 — to AT&T at 9 a.m.",
    "fr": "Merci d'avoir appelé : « l'heure, c'est l’heure ! » dit-il à Saint-Étienne, aujourd'hui.",
    "es": "¿Qué tal? ¡Muy bien, gracias! Cuesta 5 € ¿no?",
    "de": "Straßenbahn-Haltestelle, z.B. am 3. Mai: »Na, so was…«",
    "ru": "Кто-нибудь из-за угла сказал: «Как-то так». Всё!",
    "ja": "今日はiPhoneを買いました。「はい」と言って、ちょっと笑ったーです。",
    "zh": "我今年二十三岁，喜欢 Apple Music 的歌。“真的吗？”他问。",
    "ko": "안녕하세요, 저는 스물세 살입니다. 大韓民國의 역사",
    "th": "สวัสดีครับ กำลังไปเที่ยวทะเลที่ภูเก็ต เมื่อวานนี้ซื้อน้ำ ๓ ขวด",
    "lo": "ສະບາຍດີ ຂ້ອຍກຳລັງໄປຕະຫຼາດ",
    "km": "ខ្ញុំស្រឡាញ់ប្រទេសកម្ពុជា",
    "my": "မြန်မာနိုင်ငံမှာ နေပါတယ်",
    "hi": "हिन्दी में बोलिए, कृपया — धन्यवाद!",
    "ar": "السَّلامُ عَلَيْكُمْ، كيف حالك؟",
    "he": "צה״ל וארה״ב, ג׳ירפה",
    "vi": "Tôi là người Việt Nam, năm nay hai mươi ba tuổi.",
    "decomposed": unicodedata.normalize("NFD", "Crème brûlée à l'été"),
    "spaces": "two  spaces and a\u00a0hard one\u3000wide. Next",
    "symbols": "♪ la la ♪ well ... and – so 👍🏽 on",
}
"""One or more sentences by language or difficulty."""

_DIFFICULT = "a Z-'’.,$€%3é\u0301ñ 今日はー。「」ไทยเ่ำๆ ខ្ញ 한글 हि ♪\u200d\u00a0"

texts = st.one_of(
    st.sampled_from(sorted(SENTENCES.values())),
    st.lists(st.sampled_from([w for s in SENTENCES.values() for w in s.split(" ")]), max_size=9).map(
        " ".join
    ),
    st.text(_DIFFICULT, max_size=40),
    st.text(max_size=20),
)
"""Sentences, mixtures of their words, and arbitrary characters."""
