"""What happens between pictures: fusion, preprocessing, registration, multi-view stereo."""
